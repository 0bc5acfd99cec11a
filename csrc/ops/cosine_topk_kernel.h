#pragma once

#include <cstdint>

#include "cpu/inline.h"
#include "recengine/tensor.h"

namespace recengine {

// The 16 lanes of the score's definition (cosine_topk.h): queries are padded to a multiple of it.
constexpr int64_t kScoreLanes = 16;

// Items of one block: row-major [count, dim], count at most kMaxBlockItems.
struct ItemBlock {
  const float* items;
  int64_t count;
  int64_t dim;
};
constexpr int64_t kMaxBlockItems = 512;

// Scores a block against one query (padded with zeros) and writes position and score of every item
// above `threshold`, in order of position. Returns how many.
using CosineScan = int64_t (*)(const ItemBlock& block, const float* query, float threshold,
                               int32_t* positions, float* scores);

// Scores of single rows of `vectors` against one query (padded with zeros).
using CosineGather = void (*)(Matrix<const float> vectors, Span<const uint32_t> rows,
                              const float* query, float* scores);

int64_t cosine_scan_portable(const ItemBlock& block, const float* query, float threshold,
                             int32_t* positions, float* scores);
int64_t cosine_scan_avx2(const ItemBlock& block, const float* query, float threshold,
                         int32_t* positions, float* scores);
int64_t cosine_scan_avx512(const ItemBlock& block, const float* query, float threshold,
                           int32_t* positions, float* scores);

void cosine_gather_portable(Matrix<const float> vectors, Span<const uint32_t> rows,
                            const float* query, float* scores);
void cosine_gather_avx2(Matrix<const float> vectors, Span<const uint32_t> rows, const float* query,
                        float* scores);
void cosine_gather_avx512(Matrix<const float> vectors, Span<const uint32_t> rows,
                          const float* query, float* scores);

// Asks for the lines of the rows that come after these, which lie anywhere.
template <int kLocality = 3>
RECENGINE_INLINE void prefetch_rows(Matrix<const float> vectors, Span<const uint32_t> rows,
                                    int64_t begin, int64_t count) {
  constexpr int64_t kLineFloats = 16;
  for (int64_t i = begin; i < begin + count && i < rows.size; ++i) {
    const float* row = vectors.row(rows[i]);
    for (int64_t d = 0; d < vectors.cols; d += kLineFloats) {
      __builtin_prefetch(row + d, 0, kLocality);
    }
  }
}

}  // namespace recengine
