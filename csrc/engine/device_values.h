#pragma once

#include <cstdint>
#include <memory>

#include "recengine/cuda.h"
#include "recengine/tensor.h"

namespace recengine {

// Values in the memory of a GPU for the work of one call, in the order of its stream.
template <typename T>
class DeviceValues {
 public:
  // Uninitialised.
  DeviceValues(const CudaContext& context, int64_t size)
      : memory_(allocate_on_device(size * int64_t{sizeof(T)}, context.device, context.stream)),
        size_(size) {}

  // A copy of the host's values, which may change when it returns.
  DeviceValues(const CudaContext& context, Span<const T> values)
      : DeviceValues(context, values.size) {
    copy_async(memory_.get(), values.data, size_ * int64_t{sizeof(T)}, context.device,
               context.stream);
  }

  T* data() const { return static_cast<T*>(memory_.get()); }
  Span<T> span() const { return {data(), size_}; }

  // As [rows, as many as there are].
  Matrix<T> matrix(int64_t rows) const { return {data(), rows, rows == 0 ? 0 : size_ / rows}; }

 private:
  std::shared_ptr<void> memory_;
  int64_t size_;
};

}  // namespace recengine
