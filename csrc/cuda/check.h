#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "recengine/error.h"

namespace recengine::cuda {

// Throws DeviceError naming the call that failed.
inline void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  const std::string message = std::string("[cuda] ") + call + ": " + cudaGetErrorString(status);
  if (status == cudaErrorMemoryAllocation) throw DeviceMemoryError(message);
  throw DeviceError(message);
}

}  // namespace recengine::cuda

#define RECENGINE_CUDA_CHECK(call) ::recengine::cuda::check((call), #call)
