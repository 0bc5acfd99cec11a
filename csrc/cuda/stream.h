#pragma once

#include <cuda_runtime_api.h>

#include "cuda/launch.h"
#include "cuda/relaxed_capture.h"
#include "recengine/cuda.h"

namespace recengine::cuda {

inline cudaStream_t as_stream(CudaStream stream) { return static_cast<cudaStream_t>(stream); }

// Whether the stream is captured, or would have to wait for one that is.
inline bool is_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  if (error != cudaSuccess) cudaGetLastError();  // who asks later must not be told of this
  return error == cudaErrorStreamCaptureImplicit || status != cudaStreamCaptureStatusNone;
}

// A stream that does not wait for the legacy default stream, nor that for it.
class Stream {
 public:
  explicit Stream(int device) {
    const DeviceGuard guard(device);
    const RelaxedCapture relaxed;
    RECENGINE_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace recengine::cuda
