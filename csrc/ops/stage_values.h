#pragma once

#include <cstdint>

#include "recengine/cuda.h"
#include "recengine/tensor.h"

namespace recengine {

// What the stages of an engine do with the arrays of a GPU between the operations. All arrays are
// memory of the context's device; nothing is checked.

// Users of whom nothing is known get another list than a search found for them.
struct TopKAnswer {
  Matrix<const int64_t> rows;    // [batch, k], what was found; -1 where there is none
  Span<const int64_t> keys;      // raw ids of rows
  Span<const int32_t> fallback;  // [batch], a user's row in the lists below; -1: what was found
  Matrix<const int64_t> fallback_ids;
  Matrix<const float> fallback_scores;
  Matrix<int64_t> out_ids;   // [batch, k]
  Matrix<float> out_scores;  // [batch, k]; scores of what was found are there already
};
void finish_topk_cuda(const CudaContext& context, const TopKAnswer& answer);

// Candidates, each with two scores: that of a graph counts where something is known of the user.
struct RankedCandidates {
  Matrix<const int64_t> ids;  // [batch, n]
  Matrix<const float> own;    // [batch, n], finite whether they count or not
  const float* graph;         // [batch, n]
  Span<const uint8_t> known;  // [batch]
  int32_t* not_finite;  // [2], zeros; set to 1 when an own score, one that counts, is not finite
};

// order_cuda() by the scores that count, in one launch.
void order_candidates_cuda(const CudaContext& context, const RankedCandidates& candidates,
                           Matrix<int64_t> out_ids, Matrix<float> out_scores);

// out[i] = scores[i], 0 where ids[i] is an empty slot.
void slot_scores_cuda(const CudaContext& context, Span<const int64_t> ids, Span<const float> scores,
                      Span<float> out);

}  // namespace recengine
