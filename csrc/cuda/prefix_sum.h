#pragma once

#include <cstdint>

#include "cuda/device_buffer.h"
#include "recengine/cuda.h"

namespace recengine::cuda {

// sums[i] = values[0] + … + values[i - 1], negative values taken as 0; sums is [size]. On the
// context's stream, without a wait.
DeviceBuffer<int64_t> prefix_sums(const CudaContext& context, const int32_t* values, int64_t size);

}  // namespace recengine::cuda
