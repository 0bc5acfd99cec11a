#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/device_buffer.h"

namespace recengine::cuda {

// sums[i] = values[0] + … + values[i - 1], negative values taken as 0; sums is [size]. On the
// stream, without a wait.
DeviceBuffer<int64_t> prefix_sums(const int32_t* values, int64_t size, cudaStream_t stream);

}  // namespace recengine::cuda
