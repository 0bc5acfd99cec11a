// The twin of csrc/cuda/*.cu in a build without CUDA: the same names, which throw.

#include "recengine/cuda.h"
#include "recengine/error.h"

namespace recengine {

bool cuda_built() { return false; }

std::vector<CudaDevice> cuda_devices() {
  throw DeviceError("[cuda] this build has no CUDA parts; rebuild with -DRECENGINE_CUDA=ON");
}

}  // namespace recengine
