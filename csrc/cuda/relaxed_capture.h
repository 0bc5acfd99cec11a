#pragma once

#include <cuda_runtime_api.h>

#include <new>

#include "cuda/check.h"

namespace recengine::cuda {

// While another thread captures a graph, calls that could disturb that are refused to all threads
// unless these say that theirs do not.
class RelaxedCapture {
 public:
  RelaxedCapture() { RECENGINE_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  explicit RelaxedCapture(std::nothrow_t) { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace recengine::cuda
