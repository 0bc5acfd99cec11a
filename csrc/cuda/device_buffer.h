#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "recengine/cuda.h"
#include "recengine/device_scratch.h"

namespace recengine::cuda {

// Device memory of the current device, in the order of the stream; also while that is captured.
void* allocate(int64_t bytes, cudaStream_t stream);

// Uninitialised device memory [size] for the work of one call: of its scratch or, where it has
// none, taken and given back in the order of its stream, so that the host never waits.
template <typename T>
class DeviceBuffer {
 public:
  DeviceBuffer(int64_t size, const CudaContext& context)
      : size_(size),
        stream_(static_cast<cudaStream_t>(context.stream)),
        pooled_(context.scratch == nullptr) {
    const auto bytes = size * static_cast<int64_t>(sizeof(T));
    data_ = static_cast<T*>(pooled_ ? allocate(bytes, stream_) : context.scratch->take(bytes));
  }
  ~DeviceBuffer() {
    if (pooled_ && data_ != nullptr) cudaFreeAsync(data_, stream_);
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(other.size_),
        stream_(other.stream_),
        pooled_(other.pooled_) {}
  DeviceBuffer& operator=(DeviceBuffer&&) = delete;

  T* data() const { return data_; }
  int64_t size() const { return size_; }
  size_t bytes() const { return static_cast<size_t>(size_) * sizeof(T); }

 private:
  T* data_;
  int64_t size_;
  cudaStream_t stream_;
  bool pooled_;
};

}  // namespace recengine::cuda
