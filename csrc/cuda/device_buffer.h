#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <utility>

namespace recengine::cuda {

// Device memory of the current device, in the order of the stream; also while that is captured.
void* allocate(int64_t bytes, cudaStream_t stream);

// Uninitialised device memory [size] that belongs to the work on one stream: taken and given back
// in the stream's order, so that the host never waits.
template <typename T>
class DeviceBuffer {
 public:
  DeviceBuffer(int64_t size, cudaStream_t stream)
      : data_(static_cast<T*>(allocate(size * static_cast<int64_t>(sizeof(T)), stream))),
        size_(size),
        stream_(stream) {}
  ~DeviceBuffer() {
    if (data_ != nullptr) cudaFreeAsync(data_, stream_);
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(other.size_), stream_(other.stream_) {}
  DeviceBuffer& operator=(DeviceBuffer&&) = delete;

  T* data() const { return data_; }
  int64_t size() const { return size_; }
  size_t bytes() const { return static_cast<size_t>(size_) * sizeof(T); }

 private:
  T* data_;
  int64_t size_;
  cudaStream_t stream_;
};

}  // namespace recengine::cuda
