#include "cuda/launch.h"
#include "cuda/relaxed_capture.h"
#include "cuda/stream.h"
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
  const RelaxedCapture relaxed;
  const Stream stream(device);
  bool compiled = false;
  RECENGINE_CUDA_CHECK(cudaMemcpyFromSymbolAsync(&compiled, compiled_with_wgmma, sizeof compiled, 0,
                                                 cudaMemcpyDeviceToHost, stream.get()));
  RECENGINE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  return compiled;
}

}  // namespace recengine::cuda
