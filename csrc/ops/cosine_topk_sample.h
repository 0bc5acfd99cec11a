#pragma once

#include <cfloat>

#include "ops/cosine_topk_select.h"

namespace recengine::cuda {

__device__ inline int64_t num_groups(const TopKPass& pass) {
  return pass.sampled_blocks * kSampleGroups;
}

// The score that about 2 K * factor items reach, as a query's sample has it: of each group the
// lower bound of its best item, as a sort key; 0 for a group that was dropped. By all threads of
// the block.
__device__ inline float sampled_threshold(const TopKPass& pass, int query, int factor) {
  constexpr int64_t kSampleRank = 6;  // beyond what is expected above the K-th best
  __shared__ int32_t groups;
  if (threadIdx.x == 0) groups = static_cast<int32_t>(num_groups(pass));
  __syncthreads();
  const KeyRuns keys = {pass.sample_keys + query * int64_t{groups}, 0, &groups, 1};
  const int64_t left = count_keys(keys, [](uint64_t) { return true; });
  const int64_t expected = 2 * pass.k * left / (pass.sample_stride * groups);
  const int64_t rank = factor * (expected + kSampleRank);
  if (rank > left) return kMinusInfinity;
  // What lies between the keys of minus infinity and of finite scores may be no number.
  const uint64_t key = select_rank(keys, rank);
  return key < sort_key(-FLT_MAX, ~0u) ? kMinusInfinity : key_score(key);
}

}  // namespace recengine::cuda
