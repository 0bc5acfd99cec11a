#pragma once

#include "cuda/wgmma.h"
#include "ops/cosine_topk_products.h"

namespace recengine::cuda {

static_assert(kBlockItems == kWgmmaRows && kScanThreads == kWgmmaThreads);

// Products of a block of items with queries, by a block of threads, each of its warps with one tile
// of the items: more queries share what is read, and with mma_s8() Hopper's tensor cores do not
// reach their rate. Other blocks of threads on the multiprocessor use them while one compares.
template <int kQueryTiles>
struct WgmmaProducts {
  static constexpr int kQueries = kQueryTiles * kMmaColumns;
  static constexpr int kItemTiles = 1;
  static constexpr int kTiles = kQueryTiles;
  static constexpr int kTeams = 1;
  static constexpr int kThresholdSets = 2;  // one is read while that of the next block is written
  static constexpr int kStages = 12;
  static constexpr int kResident = kQueryTiles == 16 ? 4 : 3;
  static constexpr int64_t kMostQueryBytes = 64 << 10;  // with the ring within 99 KiB
  static constexpr bool kCompiled = kHasWgmma;

  int32_t sums[kTiles][4];

  __device__ static int first_item_tile() { return static_cast<int>(threadIdx.x) / kWarpLanes; }
  __device__ static void sync_team() { __syncthreads(); }

  // [steps, halves of a step, queries] of 16 bytes: see columns_of().
  __device__ static void load_codes(const TopKPass& pass, const int32_t* queries, uint4* to) {
    const int count = pass.items.steps * 2 * kQueries;
    for (auto i = static_cast<int>(threadIdx.x); i < count; i += kScanThreads) {
      to[i] = query_codes<uint4>(pass, queries[i % kQueries], i / kQueries * 16);
    }
    fence_async_proxy();
  }

  // Products of the stream's next block; calls meanwhile() while tensor cores make the last ones.
  // Two steps at once: the registers for the items of more would cost a resident block of threads.
  template <typename Meanwhile>
  __device__ __forceinline__ void multiply(CodeStream<WgmmaProducts>& stream, const uint4* codes,
                                           int steps, Meanwhile meanwhile) {
    int step = 0;
    for (; step + 2 < steps; step += 2) multiply_steps<2>(stream, codes, step, [] {});
    if (step + 2 == steps) {
      multiply_steps<2>(stream, codes, step, meanwhile);
    } else {
      multiply_steps<1>(stream, codes, step, meanwhile);
    }
  }

 private:
  __device__ static uint64_t columns_of(const uint4* codes, int step) {
    return wgmma_columns(codes + step * 2 * kQueries, 16 * kMmaColumns, 16 * kQueries);
  }

  template <int kSteps, typename Meanwhile>
  __device__ __forceinline__ void multiply_steps(CodeStream<WgmmaProducts>& stream,
                                                 const uint4* codes, int first,
                                                 Meanwhile meanwhile) {
    uint4 items[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) stream.next(items + i);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      wgmma_s8(sums, items[i], columns_of(codes, first + i), /*accumulate=*/first + i > 0);
    }
    wgmma_commit();
    meanwhile();
    wgmma_wait(sums, items);
  }
};

}  // namespace recengine::cuda
