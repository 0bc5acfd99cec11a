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

// out[b] = known[b] ? graph[b] : own[b], [batch, n].
void choose_scores_cuda(const CudaContext& context, Span<const uint8_t> known,
                        Matrix<const float> graph, Matrix<const float> own, Matrix<float> out);

// Sets `found` to 1 when the score of an item is not finite.
void find_not_finite_cuda(const CudaContext& context, Span<const int64_t> ids,
                          Span<const float> scores, int32_t* found);

// out[i] = scores[i], 0 where ids[i] is an empty slot.
void slot_scores_cuda(const CudaContext& context, Span<const int64_t> ids, Span<const float> scores,
                      Span<float> out);

}  // namespace recengine
