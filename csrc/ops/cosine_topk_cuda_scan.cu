// Scans of codes: of the products of all items a scan keeps the rows that reach a threshold, a
// sample the best of each group. Groups of queries scan the same blocks at about the same time,
// those behind reading from the L2.
#include <algorithm>
#include <climits>
#include <type_traits>

#include "ops/cosine_topk_device.h"
#include "ops/cosine_topk_products_wgmma.h"

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

// What a team reads of global memory for a block of items, before the products that it is used
// with: it arrives meanwhile.
template <typename Products>
struct BlockLimits {
  static constexpr int kTeamThreads = kScanThreads / Products::kTeams;
  static constexpr int kPerThread = (Products::kQueries + kTeamThreads - 1) / kTeamThreads;

  uint64_t allowed;
  BlockBound bound;
  int32_t found[kPerThread];  // by queries thread, thread + kTeamThreads, ...

  __device__ static int query_of(int i) {
    return i * kTeamThreads + static_cast<int>(threadIdx.x) % kTeamThreads;
  }

  __device__ BlockLimits(const TopKPass& pass, const SharedScan<Products>& shared, int64_t block)
      : allowed(allowed_items(pass, block)), bound(pass.items.bounds[block]) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int at = query_of(i);
      const int32_t query = at < Products::kQueries ? shared.queries[at] : -1;
      found[i] = query < 0 ? 0 : __ldcg(pass.found + query);
    }
  }

  // By all threads of the team, each some: what a lane compares with is a quarter of them all, too
  // many to make by itself. A query whose list overflowed wants nothing more.
  __device__ void set_thresholds(const TopKPass& pass, const SharedScan<Products>& shared,
                                 int32_t* thresholds) const {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int at = query_of(i);
      if (at >= Products::kQueries) break;
      thresholds[at] = found[i] > pass.capacity ? INT_MAX : threshold_of(shared.coded[at], bound);
    }
    Products::sync_team();
  }
};

__device__ void keep(const TopKPass& pass, int32_t query, int64_t row) {
  if (is_excluded(pass, query, static_cast<uint32_t>(row))) return;
  const int place = atomicAdd(pass.found + query, 1);
  if (place < pass.capacity) {
    pass.survivors[query * pass.capacity + place] = static_cast<uint32_t>(row);
  }
}

// A lane's products in four tiles of sums: of all items with two queries, or of two items with
// eight. The best with each query are compared first: few have hits.
constexpr int kTilesTogether = 4;

template <typename Products>
__device__ __forceinline__ void keep_hits(const TopKPass& pass, const Products& products,
                                          int first_tile, const int32_t* queries,
                                          const int32_t* thresholds, int64_t block,
                                          uint64_t allowed) {
  constexpr int kItemTiles = Products::kItemTiles;
  constexpr int kQueryTiles = kTilesTogether / kItemTiles;
  const int column =
      first_tile / kItemTiles * kMmaColumns + 2 * (static_cast<int>(threadIdx.x) % 4);
  int2 wanted[kQueryTiles];
  bool any = false;
#pragma unroll
  for (int tile = 0; tile < kQueryTiles; ++tile) {
    wanted[tile] = *reinterpret_cast<const int2*>(thresholds + column + tile * kMmaColumns);
    int32_t copy[kItemTiles * 4];
#pragma unroll
    for (int i = 0; i < kItemTiles * 4; ++i) {
      copy[i] = products.sums[first_tile + tile * kItemTiles + i / 4][i % 4];
    }
    const int2 best = best_of<kItemTiles * 4>(copy);
    any |= best.x >= wanted[tile].x || best.y >= wanted[tile].y;
  }
  if (!any) return;
  uint32_t hits = 0;
#pragma unroll
  for (int i = 0; i < kTilesTogether * 4; ++i) {
    const int2 reached = wanted[i / 4 / kItemTiles];
    const int32_t product = products.sums[first_tile + i / 4][i % 4];
    hits |= static_cast<uint32_t>(product >= (i % 2 == 0 ? reached.x : reached.y)) << i;
  }
  for (; hits != 0; hits &= hits - 1) {
    const int hit = __ffs(static_cast<int>(hits)) - 1;
    const int item = item_of(Products::first_item_tile() + hit / 4 % kItemTiles, hit % 4);
    const int query = column + hit / 4 / kItemTiles * kMmaColumns + hit % 2;
    if ((allowed >> item & 1) != 0) keep(pass, queries[query], block * kBlockItems + item);
  }
}

template <typename Products>
__device__ void scan_blocks(const TopKPass& pass, const SharedScan<Products>& shared) {
  constexpr int kTeams = Products::kTeams;
  const int team = static_cast<int>(threadIdx.x) / (kScanThreads / kTeams);
  const int begin = static_cast<int>(blockIdx.x) * kTeams + team;
  const int stride = static_cast<int>(gridDim.x) * kTeams;
  const auto blocks = static_cast<int>(pass.items.blocks);
  int set = 0;
  CodeStream<Products> stream(pass.items, shared.ring, begin, blocks, stride);
  for (int block = begin; block < blocks; block += stride) {
    const BlockLimits<Products> limits(pass, shared, block);
    int32_t* const thresholds =
        shared.thresholds + (team * Products::kThresholdSets + set) * Products::kQueries;
    Products products;
    products.multiply(stream, shared.codes, pass.items.steps,
                      [&] { limits.set_thresholds(pass, shared, thresholds); });
#pragma unroll
    for (int tile = 0; tile < Products::kTiles; tile += kTilesTogether) {
      keep_hits(pass, products, tile, shared.queries, thresholds, block, limits.allowed);
    }
    if constexpr (Products::kThresholdSets > 1) {
      set = 1 - set;
    } else {
      Products::sync_team();  // before other thresholds are written
    }
  }
}

template <typename Products>
__global__ void __launch_bounds__(kScanThreads, Products::kResident)
    scan(TopKPass pass, int round) {
  if constexpr (Products::kCompiled) {  // else never launched
    const int first = static_cast<int>(blockIdx.y) * Products::kQueries;
    const int left = pass.num_open[round] - first;
    if (left <= 0) return;
    const SharedScan<Products> shared(dynamic_shared<unsigned char>(), pass.items.steps);
    load_queries(pass, pass.open[round], first, left, shared);
    scan_blocks(pass, shared);
  }
}

// The lower bound of the best allowed product, as a sort key; that of minus infinity without one.
__device__ uint64_t sample_key(const CodedQuery& query, const BlockBound& bound, int32_t best,
                               int64_t group) {
  const float about = static_cast<float>(best) / (query.inverse_scale * bound.inverse_scale);
  const float lower = about - (query.slack + bound.error * query.error_share);
  return sort_key(best == INT_MIN ? kMinusInfinity : lower, static_cast<uint32_t>(group));
}

// Of so few blocks that faster products would not show.
template <int kTiles>
__global__ void __launch_bounds__(kScanThreads, MmaProducts<kTiles>::kResident)
    sample(TopKPass pass) {
  using Products = MmaProducts<kTiles>;
  const int first = static_cast<int>(blockIdx.y) * Products::kQueries;
  const int left = pass.num_open[0] - first;
  if (left <= 0) return;
  const SharedScan<Products> shared(dynamic_shared<unsigned char>(), pass.items.steps);
  load_queries(pass, pass.open[0], first, left, shared);

  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int64_t begin = int64_t{blockIdx.x} * kScanWarps + threadIdx.x / kWarpLanes;
  const int64_t stride = int64_t{gridDim.x} * kScanWarps;
  const int64_t offset = pass.sample_stride / 2;
  CodeStream<Products> stream(pass.items, shared.ring, offset + begin * pass.sample_stride,
                              offset + pass.sampled_blocks * pass.sample_stride,
                              stride * pass.sample_stride);
  for (int64_t i = begin; i < pass.sampled_blocks; i += stride) {
    const int64_t block = offset + i * pass.sample_stride;
    const uint64_t allowed = allowed_items(pass, block);
    const BlockBound bound = pass.items.bounds[block];
    Products products;
    products.multiply(stream, shared.codes, pass.items.steps, [] {});
    const int64_t group = i * kSampleGroups + lane / 4;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      int32_t counted[kItemTiles * 4];
#pragma unroll
      for (int j = 0; j < kItemTiles * 4; ++j) {
        const bool counts = (allowed >> item_of(j / 4, j % 4) & 1) != 0;
        counted[j] = counts ? products.sums[tile * kItemTiles + j / 4][j % 4] : INT_MIN;
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

// Whether the codes of as many queries as Products takes at once fit the shared memory.
template <typename Products>
bool fits(const TopKPass& pass) {
  return int64_t{pass.items.steps} * kMmaBytes * Products::kQueries <= Products::kMostQueryBytes;
}

// Calls launch_tiles(constant) with the tiles of queries that a group of the pass has: no more than
// there are queries for, nor than fit the shared memory.
template <typename LaunchTiles>
void for_tiles(const TopKPass& pass, LaunchTiles launch_tiles) {
  const int32_t count = pass.count;
  if (count > 32 && fits<MmaProducts<8>>(pass)) {
    return launch_tiles(std::integral_constant<int, 8>());
  }
  if (count > 16 && fits<MmaProducts<4>>(pass)) {
    return launch_tiles(std::integral_constant<int, 4>());
  }
  if (count > 8 && fits<MmaProducts<2>>(pass)) {
    return launch_tiles(std::integral_constant<int, 2>());
  }
  launch_tiles(std::integral_constant<int, 1>());
}

// As many blocks of threads as run at once, for so many blocks of items.
template <typename Products, typename... Params, typename... Args>
void launch_scan(void (*kernel)(Params...), const TopKPass& pass, int64_t blocks,
                 cudaStream_t stream, const Args&... args) {
  const size_t bytes = SharedScan<Products>::bytes(pass.items.steps);
  // The most that any index takes: threads that search others set the same.
  constexpr int kMostSteps =
      static_cast<int>(Products::kMostQueryBytes / (kMmaBytes * Products::kQueries));
  allow_shared(kernel, SharedScan<Products>::bytes(kMostSteps));
  int resident = 0;
  RECENGINE_CUDA_CHECK(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kScanThreads, bytes));
  const int64_t groups = (pass.count + Products::kQueries - 1) / Products::kQueries;
  const int64_t most = std::max<int64_t>(1, int64_t{resident} * pass.multiprocessors / groups);
  const int64_t useful = (blocks + Products::kTeams - 1) / Products::kTeams;
  const dim3 grid(static_cast<unsigned>(std::min(most, useful)), static_cast<unsigned>(groups));
  launch(kernel, grid, kScanThreads, bytes, stream, pass, args...);
}

template <typename Products>
void launch_codes(const TopKPass& pass, int round, cudaStream_t stream) {
  launch_scan<Products>(scan<Products>, pass, pass.items.blocks, stream, round);
}

}  // namespace

void scan_sample(const TopKPass& pass, cudaStream_t stream) {
  for_tiles(pass, [&](auto tiles) {
    launch_scan<MmaProducts<tiles>>(sample<tiles>, pass, pass.sampled_blocks, stream);
  });
}

void scan_codes(const TopKPass& pass, int round, cudaStream_t stream) {
  // Fewer queries wait for the memory, not for tensor cores.
  const bool many = pass.has_wgmma && pass.count > MmaProducts<8>::kQueries;
  if (many && pass.count > WgmmaProducts<16>::kQueries && fits<WgmmaProducts<32>>(pass)) {
    return launch_codes<WgmmaProducts<32>>(pass, round, stream);
  }
  if (many && fits<WgmmaProducts<16>>(pass)) {
    return launch_codes<WgmmaProducts<16>>(pass, round, stream);
  }
  for_tiles(pass, [&](auto tiles) { launch_codes<MmaProducts<tiles>>(pass, round, stream); });
}

}  // namespace recengine::cuda
