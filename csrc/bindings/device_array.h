#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "recengine/cuda.h"
#include "recengine/error.h"
#include "recengine/tensor.h"

namespace recengine {

// Python has a stream's address as a number.
inline CudaStream as_stream(uintptr_t stream) { return reinterpret_cast<CudaStream>(stream); }

// An array in C order in the memory of a GPU.
struct DeviceArray {
  std::shared_ptr<void> data;  // keeps alive what owns the memory
  std::vector<int64_t> shape;
  std::string dtype;  // as NumPy writes it: "<f4"; "bfloat16"
  int device = 0;
  uintptr_t stream = 0;  // on which it was made

  int64_t size() const;
  int64_t bytes() const;
};

// Throws InputError unless the array has this dtype and rank. `name` is "[op] argument".
void expect_array(const char* name, const DeviceArray& array, const char* dtype, size_t rank);

template <typename T>
constexpr const char* kDtype = nullptr;
template <>
constexpr const char* kDtype<float> = "<f4";
template <>
constexpr const char* kDtype<int64_t> = "<i8";
template <>
constexpr const char* kDtype<int32_t> = "<i4";

template <typename T>
Span<T> device_span(const char* name, const DeviceArray& array) {
  expect_array(name, array, kDtype<std::remove_const_t<T>>, 1);
  return {static_cast<T*>(array.data.get()), array.shape[0]};
}

template <typename T>
Matrix<T> device_matrix(const char* name, const DeviceArray& array) {
  expect_array(name, array, kDtype<std::remove_const_t<T>>, 2);
  return {static_cast<T*>(array.data.get()), array.shape[0], array.shape[1]};
}

}  // namespace recengine
