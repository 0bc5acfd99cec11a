#pragma once

#include <cuda_runtime_api.h>

#include <optional>
#include <string>

#include "cuda/check.h"
#include "cuda/device_buffer.h"
#include "recengine/cuda.h"
#include "recengine/error.h"

namespace recengine::cuda {

// What a kernel sets when it meets a value that is out of range, for calls with `check`.
class ValueCheck {
 public:
  // `op` is "[op]", for messages.
  ValueCheck(const char* op, const CudaContext& context)
      : stream_(static_cast<cudaStream_t>(context.stream)) {
    if (!context.check) return;
    cudaStreamCaptureStatus status;
    RECENGINE_CUDA_CHECK(cudaStreamIsCapturing(stream_, &status));
    if (status != cudaStreamCaptureStatusNone) {
      throw InputError(std::string(op) +
                       " check: expected False while the stream is captured, found True");
    }
    found_.emplace(1, context);
    RECENGINE_CUDA_CHECK(cudaMemsetAsync(found_->data(), 0, sizeof(int), stream_));
  }

  // For the kernel; null when nobody asks.
  int* found() const { return found_ ? found_->data() : nullptr; }

  // Waits for the kernel, when this is wanted at all.
  bool failed() const {
    if (!found_) return false;
    int found = 0;
    RECENGINE_CUDA_CHECK(
        cudaMemcpyAsync(&found, found_->data(), sizeof found, cudaMemcpyDeviceToHost, stream_));
    RECENGINE_CUDA_CHECK(cudaStreamSynchronize(stream_));
    return found != 0;
  }

 private:
  cudaStream_t stream_;
  std::optional<DeviceBuffer<int>> found_;
};

}  // namespace recengine::cuda
