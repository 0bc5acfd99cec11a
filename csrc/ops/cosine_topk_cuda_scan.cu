// Scans of codes: of the products of all items a scan keeps the rows that reach a threshold, a
// sample the best of each group. Groups of queries scan the same blocks at about the same time,
// those behind reading from the L2.
#include <algorithm>
#include <climits>
#include <type_traits>

#include "ops/cosine_topk_device.h"
#include "ops/cosine_topk_products.h"

namespace recengine::cuda {
namespace {

constexpr float kLargestThreshold = 1e9f;  // beyond any sum of products, within 32 bits

// Bits of the block's items that are there and that the bitmap allows.
__device__ uint64_t allowed_items(const TopKPass& pass, int64_t block) {
  const int64_t left = pass.items.rows - block * kBlockItems;
  const uint64_t there = left >= kBlockItems ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
  return pass.allow_bitmap == nullptr ? there : there & pass.allow_bitmap[block];
}

// The least product with which an item of the block can still be wanted, as set_thresholds() in
// search_codes.cc: what fp32 rounds here is within the query's slack.
__device__ int32_t threshold_of(const CodedQuery& query, const BlockBound& bound) {
  const float product = (query.wanted - query.slack - bound.error * query.error_share) *
                        (query.inverse_scale * bound.inverse_scale);
  return static_cast<int32_t>(fmaxf(-kLargestThreshold, fminf(product, kLargestThreshold))) - 2;
}

// What a warp reads of global memory for a block of items, before the products that it is used
// with: it arrives meanwhile.
template <int kTiles>
struct BlockLimits {
  static constexpr int kPerLane = (SharedScan<kTiles>::kQueries + kWarpLanes - 1) / kWarpLanes;

  uint64_t allowed;
  BlockBound bound;
  int32_t found[kPerLane];  // by queries lane, lane + 32, ...

  __device__ BlockLimits(const TopKPass& pass, const SharedScan<kTiles>& shared, int64_t block)
      : allowed(allowed_items(pass, block)), bound(pass.items.bounds[block]) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int at = i * kWarpLanes + static_cast<int>(threadIdx.x) % kWarpLanes;
      const int32_t query = at < SharedScan<kTiles>::kQueries ? shared.queries[at] : -1;
      found[i] = query < 0 ? 0 : __ldcg(pass.found + query);
    }
  }

  // By all lanes of the warp. A query whose list overflowed wants nothing more.
  __device__ void set_thresholds(const TopKPass& pass, const SharedScan<kTiles>& shared,
                                 int32_t* thresholds) const {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int at = i * kWarpLanes + static_cast<int>(threadIdx.x) % kWarpLanes;
      if (at >= SharedScan<kTiles>::kQueries) break;
      thresholds[at] = found[i] > pass.capacity ? INT_MAX : threshold_of(shared.coded[at], bound);
    }
    __syncwarp();
  }
};

__device__ void keep(const TopKPass& pass, int32_t query, int64_t row) {
  if (is_excluded(pass, query, static_cast<uint32_t>(row))) return;
  const int place = atomicAdd(pass.found + query, 1);
  if (place < pass.capacity) {
    pass.survivors[query * pass.capacity + place] = static_cast<uint32_t>(row);
  }
}

// Two queries' products are 16 a lane. Their best are compared first: few blocks have hits.
__device__ __forceinline__ void keep_hits(const TopKPass& pass,
                                          const int32_t (&products)[kItemTiles][4],
                                          const int32_t* queries, int2 thresholds, int64_t block,
                                          uint64_t allowed) {
  int32_t copy[kItemTiles * 4];
#pragma unroll
  for (int i = 0; i < kItemTiles * 4; ++i) copy[i] = products[i / 4][i % 4];
  const int2 best = best_of<kItemTiles * 4>(copy);
  if (best.x < thresholds.x && best.y < thresholds.y) return;
  uint32_t hits = 0;
#pragma unroll
  for (int i = 0; i < kItemTiles * 4; ++i) {
    const bool hit = products[i / 4][i % 4] >= (i % 2 == 0 ? thresholds.x : thresholds.y);
    hits |= static_cast<uint32_t>(hit) << i;
  }
  for (; hits != 0; hits &= hits - 1) {
    const int hit = __ffs(static_cast<int>(hits)) - 1;
    const int item = item_of(hit / 4, hit % 4);
    if ((allowed >> item & 1) != 0) keep(pass, queries[hit % 2], block * kBlockItems + item);
  }
}

template <int kTiles>
__global__ void __launch_bounds__(kScanThreads, kTiles == 8 ? 2 : 3)
    scan(TopKPass pass, int round) {
  const int first = static_cast<int>(blockIdx.y) * kTiles * kMmaColumns;
  const int left = pass.num_open[round] - first;
  if (left <= 0) return;
  const SharedScan<kTiles> shared(dynamic_shared<unsigned char>(), pass.items.steps);
  load_queries(pass, pass.open[round], first, left, shared);

  const auto warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int column = 2 * (static_cast<int>(threadIdx.x) % 4);  // of this lane's products
  int32_t* const thresholds = shared.thresholds + warp * SharedScan<kTiles>::kQueries;
  const int64_t begin = int64_t{blockIdx.x} * kScanWarps + warp;
  const int64_t stride = int64_t{gridDim.x} * kScanWarps;
  CodeStream stream(pass.items, shared.ring, begin, pass.items.blocks, stride);
  for (int64_t block = begin; block < pass.items.blocks; block += stride) {
    const BlockLimits<kTiles> limits(pass, shared, block);
    Products<kTiles> products;
    multiply(stream, shared, pass.items.steps, products);
    limits.set_thresholds(pass, shared, thresholds);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int at = tile * kMmaColumns + column;
      const int2 wanted = *reinterpret_cast<const int2*>(thresholds + at);
      keep_hits(pass, products[tile], shared.queries + at, wanted, block, limits.allowed);
    }
    __syncwarp();  // before other thresholds are written
  }
}

// The lower bound of the best allowed product, as a sort key; that of minus infinity without one.
__device__ uint64_t sample_key(const CodedQuery& query, const BlockBound& bound, int32_t best,
                               int64_t group) {
  const float about = static_cast<float>(best) / (query.inverse_scale * bound.inverse_scale);
  const float lower = about - (query.slack + bound.error * query.error_share);
  return sort_key(best == INT_MIN ? kMinusInfinity : lower, static_cast<uint32_t>(group));
}

template <int kTiles>
__global__ void __launch_bounds__(kScanThreads, kTiles == 8 ? 2 : 3) sample(TopKPass pass) {
  const int first = static_cast<int>(blockIdx.y) * kTiles * kMmaColumns;
  const int left = pass.num_open[0] - first;
  if (left <= 0) return;
  const SharedScan<kTiles> shared(dynamic_shared<unsigned char>(), pass.items.steps);
  load_queries(pass, pass.open[0], first, left, shared);

  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int64_t begin = int64_t{blockIdx.x} * kScanWarps + threadIdx.x / kWarpLanes;
  const int64_t stride = int64_t{gridDim.x} * kScanWarps;
  const int64_t offset = pass.sample_stride / 2;
  CodeStream stream(pass.items, shared.ring, offset + begin * pass.sample_stride,
                    offset + pass.sampled_blocks * pass.sample_stride, stride * pass.sample_stride);
  for (int64_t i = begin; i < pass.sampled_blocks; i += stride) {
    const int64_t block = offset + i * pass.sample_stride;
    const uint64_t allowed = allowed_items(pass, block);
    const BlockBound bound = pass.items.bounds[block];
    Products<kTiles> products;
    multiply(stream, shared, pass.items.steps, products);
    const int64_t group = i * kSampleGroups + lane / 4;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      int32_t counted[kItemTiles * 4];
#pragma unroll
      for (int j = 0; j < kItemTiles * 4; ++j) {
        const bool counts = (allowed >> item_of(j / 4, j % 4) & 1) != 0;
        counted[j] = counts ? products[tile][j / 4][j % 4] : INT_MIN;
      }
      const int2 best = best_of<kItemTiles * 4>(counted);
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int at = tile * kMmaColumns + 2 * (lane % 4) + side;
        if (at >= left) continue;
        pass.sample_keys[shared.queries[at] * pass.sampled_blocks * kSampleGroups + group] =
            sample_key(shared.coded[at], bound, side == 0 ? best.x : best.y, group);
      }
    }
  }
}

// Calls launch_tiles(constant) with the tiles of queries that a group of the pass has: no more than
// there are queries for, nor than fit the shared memory.
template <typename LaunchTiles>
void for_tiles(const TopKPass& pass, LaunchTiles launch_tiles) {
  const int64_t tile_bytes = int64_t{pass.items.steps} * kMmaBytes * kMmaColumns;
  int64_t tiles = 1;
  while (tiles < 8 && tiles * kMmaColumns < pass.count &&
         2 * tiles * tile_bytes <= kMostQueryBytes) {
    tiles *= 2;
  }
  if (tiles == 8) return launch_tiles(std::integral_constant<int, 8>());
  if (tiles == 4) return launch_tiles(std::integral_constant<int, 4>());
  if (tiles == 2) return launch_tiles(std::integral_constant<int, 2>());
  launch_tiles(std::integral_constant<int, 1>());
}

// As many blocks of threads as run at once, for so many blocks of items.
template <int kTiles, typename... Params, typename... Args>
void launch_scan(void (*kernel)(Params...), const TopKPass& pass, int64_t blocks,
                 cudaStream_t stream, const Args&... args) {
  const size_t bytes = SharedScan<kTiles>::bytes(pass.items.steps);
  // The most that any index takes: threads that search others set the same.
  constexpr int kMostSteps = static_cast<int>(kMostQueryBytes / (kMmaBytes * kMmaColumns * kTiles));
  allow_shared(kernel, SharedScan<kTiles>::bytes(kMostSteps));
  int resident = 0;
  RECENGINE_CUDA_CHECK(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kScanThreads, bytes));
  const int64_t groups = (pass.count + kTiles * kMmaColumns - 1) / (kTiles * kMmaColumns);
  const int64_t most = std::max<int64_t>(1, int64_t{resident} * pass.multiprocessors / groups);
  const int64_t useful = (blocks + kScanWarps - 1) / kScanWarps;
  const dim3 grid(static_cast<unsigned>(std::min(most, useful)), static_cast<unsigned>(groups));
  launch(kernel, grid, kScanThreads, bytes, stream, pass, args...);
}

}  // namespace

void scan_sample(const TopKPass& pass, cudaStream_t stream) {
  for_tiles(pass, [&](auto tiles) {
    launch_scan<tiles>(sample<tiles>, pass, pass.sampled_blocks, stream);
  });
}

void scan_codes(const TopKPass& pass, int round, cudaStream_t stream) {
  for_tiles(pass, [&](auto tiles) {
    launch_scan<tiles>(scan<tiles>, pass, pass.items.blocks, stream, round);
  });
}

}  // namespace recengine::cuda
