#pragma once

// Asynchronous products of a warpgroup (csrc/cuda/wgmma.h). As a GPU may, they read rows and
// columns and write sums as late as they are waited for; what is not allowed before is an error, or
// gives wrong sums. Columns are where the descriptor says, as fence_async_proxy() last saw memory.
// What this cannot show: a barrier that is missing, or a fence that only some threads lack.

#include <cstdint>

#include "cuda_runtime.h"

namespace cuda_emulation {

struct Wgmma {
  int32_t (*sums)[4];  // [tiles]
  int tiles;
  const uint4* rows;
  uint64_t columns;
  bool accumulate;
};

uint32_t shared_address(const void* shared);
void fence_async_proxy();
void wgmma_fence();
void wgmma(const Wgmma& product);
void wgmma_commit();
void wgmma_wait();

// Called by the launch: before the threads of a block run, at the end of each, and after all of
// them. The last returns what was wrong, or null.
void begin_wgmma_block(int threads);
void end_wgmma_thread();
const char* end_wgmma_block(int threads);

}  // namespace cuda_emulation
