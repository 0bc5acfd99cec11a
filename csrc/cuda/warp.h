#pragma once

#include "cuda/launch.h"

namespace recengine::cuda {

// The sum over the aligned group of `lanes` lanes, a power of two, that a lane is in; all get it.
// All lanes of the warp call it.
template <typename T>
__device__ __forceinline__ T warp_sum(T value, int lanes = kWarpLanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

// The sum over this lane and those before it.
template <typename T>
__device__ __forceinline__ T warp_inclusive_sum(T value) {
  const int lane = static_cast<int>(threadIdx.x % kWarpLanes);
  for (int distance = 1; distance < kWarpLanes; distance *= 2) {
    const T before = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += before;
  }
  return value;
}

}  // namespace recengine::cuda
