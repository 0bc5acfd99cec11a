#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace recengine::cuda {

// Sorts shared memory keys[0 .. size), greatest first, by all threads of the block; `size` is a
// power of two. A bitonic network (Batcher, AFIPS 1968): size / 2 independent exchanges a step.
// All threads may read all keys when it returns, and need not have met before.
__device__ inline void block_sort_descending(uint64_t* keys, int size) {
  const auto threads = static_cast<int>(blockDim.x);
  for (int run = 2; run <= size; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      __syncthreads();
      for (auto i = static_cast<int>(threadIdx.x); i < size / 2; i += threads) {
        const int low = 2 * i - (i & (distance - 1));
        const int high = low + distance;
        const uint64_t a = keys[low];
        const uint64_t b = keys[high];
        const bool descending = (low & run) == 0;
        if ((a < b) == descending) {
          keys[low] = b;
          keys[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

}  // namespace recengine::cuda
