#include <string>

#include "cuda/check.h"
#include "recengine/cuda.h"

namespace recengine {
namespace {

// Of a driver that the runtime does not take; one that is not there is no error.
void fail_old_driver() {
  int version = 0;  // 1000 * major + 10 * minor; 0 without a driver
  RECENGINE_CUDA_CHECK(cudaDriverGetVersion(&version));
  if (version == 0) return;
  throw DeviceError("[cuda] driver: expected one for CUDA " +
                    std::to_string(CUDART_VERSION / 1000) +
                    " or later, which this build is made for, found one for CUDA " +
                    std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10));
}

}  // namespace

bool cuda_built() { return true; }

std::vector<CudaDevice> cuda_devices() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver) fail_old_driver();
  if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver) return {};
  cuda::check(status, "cudaGetDeviceCount");
  std::vector<CudaDevice> devices;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    RECENGINE_CUDA_CHECK(cudaGetDeviceProperties(&properties, i));
    devices.push_back({properties.name, properties.major, properties.minor,
                       static_cast<int64_t>(properties.totalGlobalMem)});
  }
  return devices;
}

}  // namespace recengine
