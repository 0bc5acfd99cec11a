#pragma once

// Integer products of items and a group of queries, in tensor cores. A team of warps takes a block
// of items at a time, each lane its own bytes of it, from global memory through its own slots of a
// ring in shared memory; teams never wait for each other. The products stay in registers.
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

// What lies in the shared memory of a block of threads. Products are MmaProducts, below, or
// WgmmaProducts.
template <typename Products>
struct SharedScan {
  static constexpr int kQueries = Products::kQueries;
  static constexpr int64_t kRingBytes =
      int64_t{Products::kStages} * Products::kItemTiles * kTileLoads * kScanWarps * 16;

  uint4* ring;          // [warps, stages, loads of a step]
  uint4* codes;         // [steps, queries, kMmaBytes], in the order of Products
  CodedQuery* coded;    // [queries]
  int32_t* queries;     // [queries] of the pass
  int32_t* thresholds;  // [teams, kThresholdSets, queries], of the blocks that they work on

  __device__ SharedScan(unsigned char* memory, int steps) {
    ring = reinterpret_cast<uint4*>(memory);
    codes = reinterpret_cast<uint4*>(memory + kRingBytes);
    coded = reinterpret_cast<CodedQuery*>(codes + steps * kQueries * (kMmaBytes / 16));
    queries = reinterpret_cast<int32_t*>(coded + kQueries);
    thresholds = queries + kQueries;
  }

  static size_t bytes(int steps) {
    constexpr int kThresholds = Products::kTeams * Products::kThresholdSets;
    return static_cast<size_t>(kRingBytes) + size_t{kMmaBytes} * steps * kQueries +
           (sizeof(CodedQuery) + sizeof(int32_t) * (1 + kThresholds)) * kQueries;
  }
};

// Codes of a query from a dimension on, as many as T has bytes, or zeros where there is no query.
template <typename T>
__device__ T query_codes(const TopKPass& pass, int32_t query, int dim) {
  if (query < 0) return {};
  const int8_t* const codes = pass.codes + int64_t{query} * pass.items.steps * kMmaBytes;
  return *reinterpret_cast<const T*>(codes + dim);
}

// By all threads of the block: queries [first, first + kQueries) of the list. Those beyond the ones
// that are left have no codes, and nothing reaches their threshold.
template <typename Products>
__device__ void load_queries(const TopKPass& pass, const int32_t* open, int first, int left,
                             const SharedScan<Products>& shared) {
  for (auto i = static_cast<int>(threadIdx.x); i < Products::kQueries; i += kScanThreads) {
    shared.queries[i] = i < left ? open[first + i] : -1;
    if (i < left) {
      shared.coded[i] = pass.coded[open[first + i]];
    } else {
      shared.coded[i] = {1, 0, 0, INFINITY};
    }
  }
  __syncthreads();
  Products::load_codes(pass, shared.queries, shared.codes);
  __syncthreads();
}

// The blocks of one team, a step at a time, on their way into its ring: all their items for a warp
// that works alone, each warp its own tile of them for a team of four.
template <typename Products>
class CodeStream {
 public:
  // Blocks `begin`, begin + stride, ... below `end`.
  __device__ CodeStream(const ItemsView& items, uint4* ring, int64_t begin, int64_t end,
                        int64_t stride)
      : from_(items.codes + begin * items.steps * kStepLoads +
              Products::first_item_tile() * kTileLoads + threadIdx.x % kWarpLanes),
        ring_(ring + threadIdx.x / kWarpLanes * kStages * kLoads + threadIdx.x % kWarpLanes),
        skip_(static_cast<int>(stride - 1) * items.steps),
        blocks_(static_cast<int>((end - begin + stride - 1) / stride)),
        steps_(items.steps) {
    for (int stage = 0; stage < kStages - 1; ++stage) fetch(stage);
  }

  // Reads this lane's part of the next step and fetches another into the slot read before.
  __device__ void next(uint4* tiles) {
    wait_for_copies<kStages - 2>();
    __syncwarp();
    const uint4* const slot = ring_ + stage_ * kLoads;
#pragma unroll
    for (int tile = 0; tile < Products::kItemTiles; ++tile) tiles[tile] = slot[tile * kTileLoads];
    fetch(stage_ == 0 ? kStages - 1 : stage_ - 1);
    stage_ = stage_ == kStages - 1 ? 0 : stage_ + 1;
  }

 private:
  static constexpr int kStages = Products::kStages;
  static constexpr int kLoads = Products::kItemTiles * kTileLoads;  // of a step

  __device__ void fetch(int stage) {
    if (blocks_ > 0) {
#pragma unroll
      for (int tile = 0; tile < Products::kItemTiles; ++tile) {
        const int at = tile * kTileLoads;
        copy_async(ring_ + stage * kLoads + at, from_ + at);
      }
      from_ += kStepLoads;
      if (++step_ == steps_) {
        step_ = 0;
        from_ += int64_t{skip_} * kStepLoads;
        --blocks_;
      }
    }
    commit_copies();
  }

  const uint4* from_;  // what is fetched next
  uint4* ring_;
  int skip_;    // steps from a block's end to the next block's beginning
  int blocks_;  // that are not fetched yet
  int steps_;
  int step_ = 0;
  int stage_ = 0;  // that is read next
};

// Products of a block of items with queries, a warp by itself: on every GPU.
template <int kQueryTiles>
struct MmaProducts {
  static constexpr int kQueries = kQueryTiles * kMmaColumns;
  static constexpr int kItemTiles = cuda::kItemTiles;      // of a block that a warp has
  static constexpr int kTiles = kQueryTiles * kItemTiles;  // of sums
  static constexpr int kTeams = kScanWarps;                // of a block of threads
  static constexpr int kThresholdSets = 1;                 // of a team
  static constexpr int kStages = 8;  // steps on their way, and one that is read
  static constexpr int kResident = kQueryTiles == 8 ? 2 : 3;  // blocks of threads, by registers
  static constexpr int64_t kMostQueryBytes = 32 << 10;        // with the ring within 99 KiB
  static constexpr bool kCompiled = true;

  int32_t sums[kTiles][4];  // [tiles of queries, tiles of items], as of mma_s8()

  __device__ static int first_item_tile() { return 0; }
  __device__ static void sync_team() { __syncwarp(); }

  // [steps, tiles of queries, lanes], as mma_s8() takes columns.
  __device__ static void load_codes(const TopKPass& pass, const int32_t* queries, uint4* to) {
    const int count = pass.items.steps * kQueryTiles * kWarpLanes;
    for (auto i = static_cast<int>(threadIdx.x); i < count; i += kScanThreads) {
      const int lane = i % kWarpLanes;
      const int tile = i / kWarpLanes % kQueryTiles;
      const int32_t query = queries[tile * kMmaColumns + lane / 4];
      const int dim = i / kWarpLanes / kQueryTiles * kMmaBytes + lane % 4 * 4;
      reinterpret_cast<uint2*>(to)[i] = {query_codes<uint32_t>(pass, query, dim),
                                         query_codes<uint32_t>(pass, query, dim + kMmaBytes / 2)};
    }
  }

  // Products of the stream's next block; then calls meanwhile().
  template <typename Meanwhile>
  __device__ __forceinline__ void multiply(CodeStream<MmaProducts>& stream, const uint4* codes,
                                           int steps, Meanwhile meanwhile) {
#pragma unroll
    for (int i = 0; i < kTiles * 4; ++i) sums[i / 4][i % 4] = 0;
    const uint2* from = reinterpret_cast<const uint2*>(codes) + threadIdx.x % kWarpLanes;
    for (int step = 0; step < steps; ++step) {
      uint4 items[kItemTiles];
      stream.next(items);
#pragma unroll
      for (int tile = 0; tile < kQueryTiles; ++tile) {
        const uint2 queries = *from;
        from += kWarpLanes;
#pragma unroll
        for (int i = 0; i < kItemTiles; ++i) {
          mma_s8(sums[tile * kItemTiles + i], items[i], queries);
        }
      }
    }
    meanwhile();
  }
};

// The place in its block of the item that a lane's product [item tile][i] is of.
__device__ inline int item_of(int tile, int i) {
  return tile * kMmaRows + i / 2 * (kMmaRows / 2) + static_cast<int>(threadIdx.x) % kWarpLanes / 4;
}

// The greatest of a lane's products with each of two queries: [i] is one with query i % 2.
template <int kCount, int kLength>
__device__ __forceinline__ int2 best_of(int32_t (&products)[kLength]) {
  if constexpr (kCount > 2) {
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) products[i] = max(products[i], products[i + kCount / 2]);
    return best_of<kCount / 2>(products);
  }
  return {products[0], products[1]};
}

}  // namespace recengine::cuda
