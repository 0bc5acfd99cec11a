#pragma once

// Integer products of items and a group of queries, in tensor cores. A warp takes a block of items
// at a time, each lane its own bytes of it, from global memory through its own slots of a ring in
// shared memory; warps never wait for each other. The products stay in registers.
#include <climits>
#include <cmath>
#include <cstdint>

#include "cuda/copy_async.h"
#include "cuda/launch.h"
#include "cuda/mma.h"
#include "ops/cosine_topk_pass.h"

namespace recengine::cuda {

constexpr int kScanWarps = 4;
constexpr int kScanThreads = kScanWarps * kWarpLanes;
constexpr int kStages = 8;  // of the ring: steps of a block that are on their way, less one
constexpr int64_t kRingBytes = int64_t{kStages} * kStepLoads * kScanWarps * 16;
constexpr int64_t kMostQueryBytes = 32 << 10;  // of codes, with the ring within 99 KiB

template <int kTiles>
struct SharedScan {
  static constexpr int kQueries = kTiles * kMmaColumns;

  uint4* ring;          // [warps, stages, loads of a step]
  uint2* codes;         // [steps, tiles of queries, lanes]
  CodedQuery* coded;    // [queries]
  int32_t* queries;     // [queries] of the pass
  int32_t* thresholds;  // [warps, queries], for the block that the warp works on

  __device__ SharedScan(unsigned char* memory, int steps) {
    ring = reinterpret_cast<uint4*>(memory);
    codes = reinterpret_cast<uint2*>(memory + kRingBytes);
    coded = reinterpret_cast<CodedQuery*>(codes + steps * kTiles * kWarpLanes);
    queries = reinterpret_cast<int32_t*>(coded + kQueries);
    thresholds = queries + kQueries;
  }

  static size_t bytes(int steps) {
    return static_cast<size_t>(kRingBytes) + sizeof(uint2) * steps * kTiles * kWarpLanes +
           (sizeof(CodedQuery) + sizeof(int32_t) * (1 + kScanWarps)) * kQueries;
  }
};

// The codes of four dimensions, or zeros where there is no query.
__device__ inline uint32_t query_codes(const TopKPass& pass, int32_t query, int steps, int dim) {
  if (query < 0) return 0;
  const int8_t* const codes = pass.codes + (int64_t{query} * steps * kMmaBytes + dim);
  return *reinterpret_cast<const uint32_t*>(codes);
}

// By all threads of the block: queries [first, first + kQueries) of the list. Those beyond the ones
// that are left have no codes, and nothing reaches their threshold.
template <int kTiles>
__device__ void load_queries(const TopKPass& pass, const int32_t* open, int first, int left,
                             const SharedScan<kTiles>& shared) {
  const auto thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < SharedScan<kTiles>::kQueries; i += kScanThreads) {
    shared.queries[i] = i < left ? open[first + i] : -1;
    if (i < left) {
      shared.coded[i] = pass.coded[open[first + i]];
    } else {
      shared.coded[i] = {1, 0, 0, INFINITY};
    }
  }
  __syncthreads();
  const int steps = pass.items.steps;
  for (int i = thread; i < steps * kTiles * kWarpLanes; i += kScanThreads) {
    const int lane = i % kWarpLanes;
    const int tile = i / kWarpLanes % kTiles;
    const int step = i / kWarpLanes / kTiles;
    const int32_t query = shared.queries[tile * kMmaColumns + lane / 4];
    const int dim = step * kMmaBytes + lane % 4 * 4;
    shared.codes[i] = {query_codes(pass, query, steps, dim),
                       query_codes(pass, query, steps, dim + kMmaBytes / 2)};
  }
  __syncthreads();
}

// The blocks of one warp, a step at a time, on their way into its ring.
class CodeStream {
 public:
  // Blocks `begin`, begin + stride, ... below `end`.
  __device__ CodeStream(const ItemsView& items, uint4* ring, int64_t begin, int64_t end,
                        int64_t stride)
      : codes_(items.codes),
        ring_(ring + threadIdx.x / kWarpLanes * kStages * kStepLoads + threadIdx.x % kWarpLanes),
        block_(begin),
        end_(end),
        stride_(stride),
        steps_(items.steps) {
    for (int stage = 0; stage < kStages - 1; ++stage) fetch();
  }

  // Reads this lane's part of the next step and fetches another into the slot read before.
  __device__ void next(uint4 (&tiles)[kItemTiles]) {
    wait_for_copies<kStages - 2>();
    __syncwarp();
    const uint4* const from = ring_ + read_ * kStepLoads;
#pragma unroll
    for (int tile = 0; tile < kItemTiles; ++tile) tiles[tile] = from[tile * kTileLoads];
    read_ = (read_ + 1) % kStages;
    fetch();
  }

 private:
  __device__ void fetch() {
    if (block_ < end_) {
      const uint4* const from = codes_ + (block_ * steps_ + step_) * kStepLoads +
                                static_cast<int>(threadIdx.x) % kWarpLanes;
      uint4* const to = ring_ + written_ * kStepLoads;
#pragma unroll
      for (int tile = 0; tile < kItemTiles; ++tile) {
        copy_async(to + tile * kTileLoads, from + tile * kTileLoads);
      }
      if (++step_ == steps_) {
        step_ = 0;
        block_ += stride_;
      }
    }
    written_ = (written_ + 1) % kStages;
    commit_copies();
  }

  const uint4* codes_;
  uint4* ring_;
  int64_t block_;  // that is fetched next
  int64_t end_;
  int64_t stride_;
  int steps_;
  int step_ = 0;
  int read_ = 0;
  int written_ = 0;
};

template <int kTiles>
using Products = int32_t[kTiles][kItemTiles][4];

// Products of the stream's next block with all queries, as mma_s8() leaves them.
template <int kTiles>
__device__ __forceinline__ void multiply(CodeStream& stream, const SharedScan<kTiles>& shared,
                                         int steps, Products<kTiles>& products) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < kItemTiles * 4; ++i) products[tile][i / 4][i % 4] = 0;
  }
  const uint2* codes = shared.codes + threadIdx.x % kWarpLanes;
  for (int step = 0; step < steps; ++step) {
    uint4 items[kItemTiles];
    stream.next(items);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint2 queries = *codes;
      codes += kWarpLanes;
#pragma unroll
      for (int i = 0; i < kItemTiles; ++i) mma_s8(products[tile][i], items[i], queries);
    }
  }
}

// The place in its block of the item that a lane's product [item tile][i] is of.
__device__ inline int item_of(int tile, int i) {
  return tile * kMmaRows + i / 2 * (kMmaRows / 2) + static_cast<int>(threadIdx.x) % kWarpLanes / 4;
}

// The greatest of a lane's products with each of two queries: [i] is one with query i % 2.
template <int kCount>
__device__ __forceinline__ int2 best_of(int32_t (&products)[kItemTiles * 4]) {
  if constexpr (kCount > 2) {
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) products[i] = max(products[i], products[i + kCount / 2]);
    return best_of<kCount / 2>(products);
  }
  return {products[0], products[1]};
}

}  // namespace recengine::cuda
