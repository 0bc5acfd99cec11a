// Scores the survivors of a scan and answers the queries for which that proves to be enough.
//
// An item that a scan left out has a score below the query's threshold. With K survivors whose
// scores reach it none of those can be among the best, nor tie with them; without a threshold none
// was left out. Else the query goes to the next round: with a lower threshold when this was too
// high, with the K-th best score of those in its list when that overflowed, which K items reach.
#include <algorithm>

#include "ops/cosine_topk_sample.h"

namespace recengine::cuda {
namespace {

constexpr int kScoreThreads = 256;
constexpr int kAnswerThreads = 512;
constexpr int64_t kScoresPerBlock = 64;
constexpr int64_t kMostScoreBlocks = 64;  // of a query
constexpr int kLowerFactor = 4;  // of the items that reach the threshold after one too high

__device__ int32_t num_survivors(const TopKPass& pass, int query) {
  return static_cast<int32_t>(min(int64_t{pass.found[query]}, pass.capacity));
}

// 16 lanes a survivor. Both halves of a warp make as many turns, for they exchange lanes together.
__global__ void __launch_bounds__(kScoreThreads) score(TopKPass pass, int round) {
  if (static_cast<int32_t>(blockIdx.y) >= pass.num_open[round]) return;
  const int query = pass.open[round][blockIdx.y];
  const int32_t count = num_survivors(pass, query);
  const float* const unit = pass.units + int64_t{query} * pass.padded_dim;
  constexpr int kAtOnce = kScoreThreads / static_cast<int>(kScoreLanes);
  const int own = static_cast<int>(threadIdx.x / kScoreLanes);
  const int step = static_cast<int>(gridDim.x) * kAtOnce;
  for (int first = static_cast<int>(blockIdx.x) * kAtOnce; first < count; first += step) {
    const int64_t at = query * pass.capacity + min(first + own, count - 1);
    const uint32_t row = pass.survivors[at];
    const float* const item = pass.items.units + int64_t{row} * pass.items.dim;
    const float value = score_row(item, unit, pass.items.dim);
    if (threadIdx.x % kScoreLanes == 0 && first + own < count) {
      pass.keys[at] = sort_key(value, row);
    }
  }
}

__device__ void ask_again(const TopKPass& pass, int query, int round, float wanted) {
  if (threadIdx.x != 0) return;
  pass.coded[query].wanted = wanted;
  pass.found[query] = 0;
  leave_open(pass, query, round + 1);
}

__global__ void __launch_bounds__(kAnswerThreads) answer(TopKPass pass, int round) {
  if (static_cast<int32_t>(blockIdx.x) >= pass.num_open[round]) return;
  const int query = pass.open[round][blockIdx.x];
  const bool overflowed = pass.found[query] > pass.capacity;
  const int32_t count = num_survivors(pass, query);
  const KeyRuns keys = {pass.keys + query * pass.capacity, 0, &count, 1};
  const int64_t scored = pass.scored[query] + count;
  const CodedQuery coded = pass.coded[query];
  __syncthreads();  // all have read what is now written
  if (threadIdx.x == 0) pass.scored[query] = scored;
  if (overflowed) {
    return ask_again(pass, query, round, key_score(select_rank(keys, pass.k)));
  }
  if (coded.wanted > kMinusInfinity) {
    const uint64_t least = sort_key(coded.wanted, ~0u);
    const int64_t reaching = count_keys(keys, [least](uint64_t key) { return key >= least; });
    if (reaching < pass.k) {
      return ask_again(pass, query, round, sampled_threshold(pass, query, kLowerFactor));
    }
  }
  const uint64_t last = write_answer(pass, query, keys, count, dynamic_shared<uint64_t>());
  const float bound = coded.slack + pass.items.largest_error * coded.error_share;
  certify(pass, query, last, coded.wanted > kMinusInfinity ? bound : 0, count, scored);
}

}  // namespace

void answer_round(const TopKPass& pass, int round, cudaStream_t stream) {
  const int64_t blocks = (pass.capacity + kScoresPerBlock - 1) / kScoresPerBlock;
  const dim3 grid(static_cast<unsigned>(std::min(blocks, kMostScoreBlocks)),
                  static_cast<unsigned>(pass.count));
  launch(score, grid, kScoreThreads, 0, stream, pass, round);
  launch(answer, static_cast<unsigned>(pass.count), kAnswerThreads,
         static_cast<size_t>(kMostSorted) * sizeof(uint64_t), stream, pass, round);
}

}  // namespace recengine::cuda
