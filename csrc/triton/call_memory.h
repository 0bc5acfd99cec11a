#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "recengine/cuda.h"

namespace recengine::triton {

// The arrays of one engine call, in the memory that the engine computes in, and the copies to and
// from them. On a GPU all is done in the order of the calling thread's stream.
class CallMemory {
 public:
  // On a GPU or, with kHost, the host. Throws DeviceError when there is no such device.
  explicit CallMemory(int device);
  ~CallMemory();  // as finish(): nobody's memory is read any more
  CallMemory(const CallMemory&) = delete;
  CallMemory& operator=(const CallMemory&) = delete;

  int device() const { return device_; }
  CudaStream stream() const { return stream_; }

  // Uninitialised.
  template <typename T>
  T* take(int64_t size) {
    return static_cast<T*>(take_bytes(size * int64_t{sizeof(T)}));
  }

  // Both ends may be anywhere; `from` must stay as it is until finish().
  void copy(void* to, const void* from, int64_t bytes);

  // Of each of some rows the first row_bytes, which go one after another.
  void copy_rows(void* to, int64_t row_bytes, const void* from, int64_t from_bytes, int64_t rows);

  // Returns when everything is done. Throws DeviceError when some of it failed.
  void finish();

 private:
  void* take_bytes(int64_t bytes);

  int device_;
  CudaStream stream_ = nullptr;
  std::vector<std::unique_ptr<std::byte[]>> on_host_;
  std::vector<std::shared_ptr<void>> on_device_;
};

}  // namespace recengine::triton
