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

// Arrays of the host that go to a GPU in one copy.
class DeviceUpload {
 public:
  template <typename T>
  struct Part {
    int64_t at;  // in bytes
    int64_t size;
  };

  template <typename T>
  Part<T> add(const std::vector<T>& values) {
    const int64_t at = (static_cast<int64_t>(host_.size()) + kAlignment - 1) & -kAlignment;
    const auto size = static_cast<int64_t>(values.size());
    host_.resize(static_cast<size_t>(at + size * int64_t{sizeof(T)}));
    if (size > 0) std::memcpy(host_.data() + at, values.data(), values.size() * sizeof(T));
    return {at, size};
  }

  void copy(const CudaContext& context) { device_.emplace(context, Span<const char>(host_)); }

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
  std::optional<DeviceValues<char>> device_;
};

}  // namespace recengine
