#pragma once

#include <cstdint>

#include "cuda/block_reduce.h"
#include "cuda/block_sort.h"
#include "ops/cosine_topk_device.h"

namespace recengine::cuda {

// Sort keys of one query: `runs` arrays, one every `stride` keys; 0 is no key.
struct KeyRuns {
  const uint64_t* keys;
  int64_t stride;
  const int32_t* counts;  // [runs]
  int runs;
};

// Calls visit(key) for all keys, each from one thread of the block. A single run is shared by all
// threads; else each warp takes runs of its own, so that several are on their way.
template <typename Visit>
__device__ void for_each_key(const KeyRuns& all, Visit visit) {
  const int together = all.runs == 1 ? static_cast<int>(blockDim.x) : kWarpLanes;
  const int teams = static_cast<int>(blockDim.x) / together;
  const int member = static_cast<int>(threadIdx.x) % together;
  for (int run = static_cast<int>(threadIdx.x) / together; run < all.runs; run += teams) {
    const uint64_t* const keys = all.keys + run * all.stride;
    for (int64_t i = member; i < all.counts[run]; i += together) {
      if (keys[i] != 0) visit(keys[i]);
    }
  }
}

template <typename Test>
__device__ int64_t count_keys(const KeyRuns& all, Test test) {
  int64_t count = 0;
  for_each_key(all, [&](uint64_t key) { count += test(key) ? 1 : 0; });
  return block_reduce(count, int64_t{0}, [](int64_t a, int64_t b) { return a + b; });
}

constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;

struct Digit {
  int value;       // of the key with the rank among those counted
  uint32_t count;  // of keys with it
  uint32_t above;  // of keys with a greater one
};

// By all threads of the block; the histogram is complete, and may be changed when this returns.
__device__ inline Digit find_digit(const uint32_t* histogram, int64_t rank) {
  constexpr int kPerLane = kDigits / kWarpLanes;
  __shared__ Digit found;
  if (threadIdx.x < kWarpLanes) {
    const auto lane = static_cast<int>(threadIdx.x);
    const int top = kDigits - 1 - lane * kPerLane;  // the first lane has the greatest digits
    uint32_t own = 0;
    for (int i = 0; i < kPerLane; ++i) own += histogram[top - i];
    uint32_t above = own;
    for (int distance = 1; distance < kWarpLanes; distance *= 2) {
      const uint32_t other = __shfl_up_sync(kAllLanes, above, distance);
      if (lane >= distance) above += other;
    }
    above -= own;
    if (above < rank && rank <= int64_t{above} + own) {
      int digit = top;
      for (; above + histogram[digit] < rank; --digit) above += histogram[digit];
      found = {digit, histogram[digit], above};
    }
  }
  __syncthreads();
  const Digit digit = found;
  __syncthreads();
  return digit;
}

// A value that exactly `rank` keys reach, between the key of that rank and the next; by all threads
// of the block. There are at least `rank` keys, 1 or more, and no key is there twice.
__device__ inline uint64_t select_rank(const KeyRuns& all, int64_t rank) {
  uint64_t least = ~uint64_t{0};
  uint64_t greatest = 0;
  for_each_key(all, [&](uint64_t key) {
    least = min(least, key);
    greatest = max(greatest, key);
  });
  least = block_reduce(least, ~uint64_t{0}, [](uint64_t a, uint64_t b) { return min(a, b); });
  greatest = block_reduce(greatest, uint64_t{0}, [](uint64_t a, uint64_t b) { return max(a, b); });

  // Digit by digit from the first bit in which keys differ. So far the key is known above bit
  // `low`.
  __shared__ uint32_t histogram[kDigits];
  int low = 64 - __clzll(static_cast<long long>(least ^ greatest));
  uint64_t known = low == 64 ? 0 : greatest >> low << low;
  while (low > 0) {
    const int high = low;
    low = max(high - kDigitBits, 0);
    for (auto i = static_cast<int>(threadIdx.x); i < kDigits; i += blockDim.x) histogram[i] = 0;
    __syncthreads();
    for_each_key(all, [&](uint64_t key) {
      if (high == 64 || (key ^ known) >> high == 0) {
        atomicAdd(histogram + ((key >> low) & ((1u << (high - low)) - 1)), 1u);
      }
    });
    __syncthreads();
    const Digit digit = find_digit(histogram, rank);
    rank -= digit.above;
    known |= uint64_t{static_cast<uint32_t>(digit.value)} << low;
    if (digit.count == rank) break;  // all of them
  }
  return known;
}

// Copies the keys that reach `least` and returns their number; by all threads of the block.
__device__ inline int gather_keys(const KeyRuns& all, uint64_t least, uint64_t* out) {
  __shared__ int count;
  __syncthreads();
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  for_each_key(all, [&](uint64_t key) {
    if (key >= least) out[atomicAdd(&count, 1)] = key;
  });
  __syncthreads();
  return count;
}

constexpr int64_t kSortedAtOnce = 1024;  // so few are sorted sooner than the best of them are found

// Writes the best of `total` keys as the answer to a query, by all threads of the block; returns
// the key of rank K, 0 when there are fewer. `sorted` has room for kMostSorted keys, or for the
// next power of two of a larger K.
__device__ inline uint64_t write_answer(const TopKPass& pass, int query, const KeyRuns& all,
                                        int64_t total, uint64_t* sorted) {
  const bool sort_all = total <= max(pass.k, kSortedAtOnce);
  const int count = gather_keys(all, sort_all ? 1 : select_rank(all, pass.k), sorted);
  int size = 1;
  while (size < count) size *= 2;
  for (int i = count + static_cast<int>(threadIdx.x); i < size; i += blockDim.x) sorted[i] = 0;
  block_sort_descending(sorted, size);
  for (int64_t i = threadIdx.x; i < pass.k; i += blockDim.x) {
    write_item(pass, query, i, i < count ? sorted[i] : 0);
  }
  return pass.k <= count ? sorted[pass.k - 1] : 0;
}

__device__ inline void certify(const TopKPass& pass, int query, uint64_t last, float bound,
                               int64_t survivors, int64_t scored) {
  if (threadIdx.x != 0 || pass.certificates == nullptr) return;
  pass.certificates[query] = {last == 0 ? kMinusInfinity : key_score(last), bound, survivors,
                              scored};
}

}  // namespace recengine::cuda
