#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace recengine {

// A borrowed run of values.
template <typename T>
struct Span {
  T* data = nullptr;
  int64_t size = 0;

  Span() = default;
  Span(T* data_in, int64_t size_in) : data(data_in), size(size_in) {}
  template <typename U, typename = std::enable_if_t<std::is_convertible_v<U (*)[], T (*)[]>>>
  Span(const Span<U>& other) : data(other.data), size(other.size) {}
  template <typename U, typename = std::enable_if_t<std::is_convertible_v<const U (*)[], T (*)[]>>>
  Span(const std::vector<U>& values)
      : data(values.data()), size(static_cast<int64_t>(values.size())) {}

  T& operator[](int64_t i) const { return data[i]; }
  T* begin() const { return data; }
  T* end() const { return data + size; }
  bool empty() const { return size == 0; }
};

// A borrowed row-major [rows, cols] array without gaps.
template <typename T>
struct Matrix {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;

  Matrix() = default;
  Matrix(T* data_in, int64_t rows_in, int64_t cols_in)
      : data(data_in), rows(rows_in), cols(cols_in) {}
  template <typename U, typename = std::enable_if_t<std::is_convertible_v<U (*)[], T (*)[]>>>
  Matrix(const Matrix<U>& other) : data(other.data), rows(other.rows), cols(other.cols) {}

  T* row(int64_t i) const { return data + i * cols; }
};

}  // namespace recengine
