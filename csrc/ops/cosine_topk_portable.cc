#include "ops/cosine_topk_kernel.h"

namespace recengine {
namespace {

float score_of(const float* item, const float* query, int64_t dim) {
  float lanes[kScoreLanes] = {};
  int64_t d = 0;
  for (; d + kScoreLanes <= dim; d += kScoreLanes) {
    for (int64_t j = 0; j < kScoreLanes; ++j) lanes[j] += item[d + j] * query[d + j];
  }
  for (int64_t j = 0; d + j < dim; ++j) lanes[j] += item[d + j] * query[d + j];
  for (int64_t half = kScoreLanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

}  // namespace

int64_t cosine_scan_portable(const ItemBlock& block, const float* query, float threshold,
                             int32_t* positions, float* scores) {
  int64_t hits = 0;
  for (int64_t i = 0; i < block.count; ++i) {
    const float score = score_of(block.items + i * block.dim, query, block.dim);
    if (score > threshold) {
      positions[hits] = static_cast<int32_t>(i);
      scores[hits++] = score;
    }
  }
  return hits;
}

void cosine_gather_portable(Matrix<const float> vectors, Span<const uint32_t> rows,
                            const float* query, float* scores) {
  for (int64_t i = 0; i < rows.size; ++i) {
    scores[i] = score_of(vectors.row(rows[i]), query, vectors.cols);
  }
}

}  // namespace recengine
