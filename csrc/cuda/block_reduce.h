#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace recengine::cuda {

// combine() over the values of all threads of the block, which all get it; the block has whole
// warps. `identity` changes no value.
template <typename T, typename Combine>
__device__ T block_reduce(T value, T identity, Combine combine) {
  __shared__ T of_warps[kWarpLanes];
  for (int half = kWarpLanes / 2; half > 0; half /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, half));
  }
  __syncthreads();  // those of the call before have been read
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  if (lane == 0) of_warps[threadIdx.x / kWarpLanes] = value;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / kWarpLanes;
  value = lane < warps ? of_warps[lane] : identity;
  for (int half = kWarpLanes / 2; half > 0; half /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, half));
  }
  return value;
}

}  // namespace recengine::cuda
