#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "cuda/launch.h"
#include "ops/bitmap.h"
#include "ops/cosine_topk_kernel.h"
#include "ops/cosine_topk_pass.h"
#include "ops/sort_key.h"

namespace recengine::cuda {

constexpr float kMinusInfinity = -INFINITY;

// The score as cosine_topk.h defines it, from 16 lanes that all get it; all lanes of the warp call.
// Addition is commutative, so that exchanging halves gives the bits of the tree.
__device__ inline float score_row(const float* item, const float* query, int dim) {
  constexpr int kLanes = static_cast<int>(kScoreLanes);
  float sum = 0;
#pragma unroll 4
  for (int d = static_cast<int>(threadIdx.x) % kLanes; d < dim; d += kLanes) {
    sum = __fadd_rn(sum, __fmul_rn(item[d], query[d]));
  }
  for (int half = kLanes / 2; half > 0; half /= 2) {
    sum = __fadd_rn(sum, __shfl_xor_sync(kAllLanes, sum, half));
  }
  return sum;
}

// A place in a table of `size` slots, spread by a multiplicative hash.
__device__ inline uint32_t exclusion_slot(uint32_t row, uint64_t size) {
  return static_cast<uint32_t>((row * 0x9e3779b1u) * size >> 32);
}

struct RowRange {
  int64_t begin;
  int64_t end;
};

// Where a query's list is among the excluded rows; lengths are cut where the rows end.
__device__ inline RowRange exclusions_of(const TopKPass& pass, int64_t query_of_call) {
  const int64_t begin = pass.exclude_sums[query_of_call];
  const int64_t end = begin + max(pass.exclude_lengths[query_of_call], 0);
  return {min(begin, pass.exclude_rows.size), min(end, pass.exclude_rows.size)};
}

__device__ inline bool is_excluded(const TopKPass& pass, int query, uint32_t row) {
  if (pass.exclude_lengths == nullptr) return false;
  const RowRange range = exclusions_of(pass, pass.first + query);
  const auto size = static_cast<uint32_t>(2 * (range.end - range.begin));
  if (size == 0) return false;
  const uint32_t* const slots = pass.exclude_slots + 2 * range.begin;
  // At least half of the slots are empty.
  for (uint32_t slot = exclusion_slot(row, size);; slot = slot + 1 == size ? 0 : slot + 1) {
    if (slots[slot] == row) return true;
    if (slots[slot] == kNoRow) return false;
  }
}

__device__ inline bool is_allowed(const TopKPass& pass, int64_t row) {
  return pass.allow_bitmap == nullptr ||
         (pass.allow_bitmap[row / kBitmapWord] >> (row % kBitmapWord) & 1) != 0;
}

// Puts a query on the list of a round.
__device__ inline void leave_open(const TopKPass& pass, int query, int round) {
  pass.open[round][atomicAdd(pass.num_open + round, 1)] = query;
}

__device__ inline void write_item(const TopKPass& pass, int query, int64_t place, uint64_t key) {
  const int64_t at = query * pass.k + place;
  pass.out_rows[at] = key == 0 ? -1 : static_cast<int64_t>(key_position(key));
  pass.out_scores[at] = key == 0 ? kMinusInfinity : key_score(key);
}

}  // namespace recengine::cuda
