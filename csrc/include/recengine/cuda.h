#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace recengine {

struct CudaDevice {
  std::string name;
  int32_t major = 0;  // compute capability
  int32_t minor = 0;
  int64_t memory_bytes = 0;
};

// True when this build has the CUDA parts (CMake option RECENGINE_CUDA).
bool cuda_built();

// The GPUs that this process sees; empty without a driver. Throws DeviceError when the CUDA parts
// were not built, or the driver fails.
std::vector<CudaDevice> cuda_devices();

}  // namespace recengine
