#include "cuda/launch.h"
#include "cuda/wgmma.h"

namespace recengine::cuda {
namespace {

__device__ bool compiled_with_wgmma = kHasWgmma;  // differs from one architecture's code to another

}  // namespace

bool device_has_wgmma(int device) {
  int major = 0, minor = 0;
  RECENGINE_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  RECENGINE_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  if (major != 9 || minor != 0) return false;
  const DeviceGuard guard(device);
  bool compiled = false;
  RECENGINE_CUDA_CHECK(cudaMemcpyFromSymbol(&compiled, compiled_with_wgmma, sizeof compiled));
  return compiled;
}

}  // namespace recengine::cuda
