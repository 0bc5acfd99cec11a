#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "recengine/cuda.h"
#include "recengine/device_scratch.h"
#include "recengine/tensor.h"

namespace recengine {

// Values in the memory of a GPU for the work of one call, in the order of its stream; of the
// call's scratch, if it has one.
template <typename T>
class DeviceValues {
 public:
  // Uninitialised.
  DeviceValues(const CudaContext& context, int64_t size) : size_(size) {
    const int64_t bytes = size * int64_t{sizeof(T)};
    if (context.scratch != nullptr) {
      data_ = static_cast<T*>(context.scratch->take(bytes));
      return;
    }
    memory_ = allocate_on_device(bytes, context.device, context.stream);
    data_ = static_cast<T*>(memory_.get());
  }

  // A copy of the host's values, which may change when it returns.
  DeviceValues(const CudaContext& context, Span<const T> values)
      : DeviceValues(context, values.size) {
    copy_async(data_, values.data, size_ * int64_t{sizeof(T)}, context.device, context.stream);
  }

  T* data() const { return data_; }
  Span<T> span() const { return {data_, size_}; }

  // As [rows, as many as there are].
  Matrix<T> matrix(int64_t rows) const { return {data_, rows, rows == 0 ? 0 : size_ / rows}; }

 private:
  std::shared_ptr<void> memory_;  // where there is no scratch
  T* data_;
  int64_t size_;
};

// The array, or its copy where a graph's reads are the same each time.
template <typename T>
Matrix<const T> in_scratch(const CudaContext& context, Matrix<const T> given) {
  if (context.scratch == nullptr || context.scratch->holds(given.data)) return given;
  const DeviceValues<T> copy(context, Span<const T>{given.data, given.rows * given.cols});
  return {copy.data(), given.rows, given.cols};
}

// As a part of a graph's key.
inline int64_t address(const void* data) { return reinterpret_cast<intptr_t>(data); }

// The least power of `base` that is not below, or 0: of arrays of many sizes few shapes.
inline int64_t few_sizes(int64_t size, int64_t base) {
  if (size == 0) return 0;
  int64_t rounded = 1;
  while (rounded < size) rounded *= base;
  return rounded;
}

// Arrays of the host that go to a GPU in one copy.
class DeviceUpload {
 public:
  template <typename T>
  struct Part {
    int64_t at;  // in bytes
    int64_t size;
  };

  // With room for `size` values, of which those behind the given ones are not defined.
  template <typename T>
  Part<T> add(const std::vector<T>& values, int64_t size) {
    const int64_t at = (bytes_ + kAlignment - 1) & -kAlignment;
    host_.resize(static_cast<size_t>(at) + values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(host_.data() + at, values.data(), values.size() * sizeof(T));
    bytes_ = at + size * int64_t{sizeof(T)};
    return {at, size};
  }
  template <typename T>
  Part<T> add(const std::vector<T>& values) {
    return add(values, static_cast<int64_t>(values.size()));
  }

  // Room behind the last values is not copied.
  void copy(const CudaContext& context) {
    device_.emplace(context, bytes_);
    copy_async(device_->data(), host_.data(), static_cast<int64_t>(host_.size()), context.device,
               context.stream);
  }

  const void* data() const { return device_->data(); }

  // Valid after copy().
  template <typename T>
  T* data(const Part<T>& part) const {
    return reinterpret_cast<T*>(device_->data() + part.at);
  }
  template <typename T>
  Span<const T> operator[](const Part<T>& part) const {
    return {data(part), part.size};
  }

 private:
  static constexpr int64_t kAlignment = 16;

  std::vector<char> host_;
  int64_t bytes_ = 0;
  std::optional<DeviceValues<char>> device_;
};

}  // namespace recengine
