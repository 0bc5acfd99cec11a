#include <immintrin.h>

#include "ops/cosine_topk_kernel.h"

namespace recengine {
namespace {

constexpr int kItems = 16;  // scored together, one accumulator each

// The tree's steps on two vectors at once: each halves the lanes that belong to one item.
__m512 fold8(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
__m512 fold4(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
__m512 fold2(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}
__m512 fold1(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}

// Items t, t + 4, t + 8, t + 12 end in lane t of the four 128-bit blocks: so lane i is item i.
__m512 fold(const __m512* sums) {
  __m512 quads[4];
  for (int t = 0; t < 4; ++t) {
    quads[t] = fold4(fold8(sums[t], sums[t + 4]), fold8(sums[t + 8], sums[t + 12]));
  }
  return fold1(fold2(quads[0], quads[1]), fold2(quads[2], quads[3]));
}

// Scores of 16 items, in order; `offset[i]` is where item i begins.
__m512 score_items(const float* items, const int64_t* offset, const float* query, int64_t dim) {
  __m512 sums[kItems];
  for (int i = 0; i < kItems; ++i) sums[i] = _mm512_setzero_ps();
  int64_t d = 0;
  for (; d + kScoreLanes <= dim; d += kScoreLanes) {
    const __m512 part = _mm512_loadu_ps(query + d);
    for (int i = 0; i < kItems; ++i) {
      const __m512 values = _mm512_loadu_ps(items + offset[i] + d);
      sums[i] = _mm512_add_ps(sums[i], _mm512_mul_ps(values, part));
    }
  }
  if (d < dim) {
    const __mmask16 tail = static_cast<__mmask16>((1u << (dim - d)) - 1);
    const __m512 part = _mm512_loadu_ps(query + d);
    for (int i = 0; i < kItems; ++i) {
      const __m512 values = _mm512_maskz_loadu_ps(tail, items + offset[i] + d);
      sums[i] = _mm512_add_ps(sums[i], _mm512_mul_ps(values, part));
    }
  }
  return fold(sums);
}

}  // namespace

int64_t cosine_scan_avx512(const ItemBlock& block, const float* query, float threshold,
                           int32_t* positions, float* scores) {
  const __m512 bound = _mm512_set1_ps(threshold);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int64_t hits = 0;
  for (int64_t begin = 0; begin < block.count; begin += kItems) {
    const int64_t left = block.count - begin;
    int64_t offset[kItems];
    for (int64_t i = 0; i < kItems; ++i) offset[i] = (i < left ? i : left - 1) * block.dim;
    const __m512 found = score_items(block.items + begin * block.dim, offset, query, block.dim);
    __mmask16 above = _mm512_cmp_ps_mask(found, bound, _CMP_GT_OQ);
    if (left < kItems) above &= static_cast<__mmask16>((1u << left) - 1);
    if (above == 0) continue;
    const __m512i position = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(begin)));
    _mm512_mask_compressstoreu_epi32(positions + hits, above, position);
    _mm512_mask_compressstoreu_ps(scores + hits, above, found);
    hits += __builtin_popcount(above);
  }
  return hits;
}

void cosine_gather_avx512(Matrix<const float> vectors, Span<const uint32_t> rows,
                          const float* query, float* scores) {
  prefetch_rows(vectors, rows, 0, kItems);
  for (int64_t begin = 0; begin < rows.size; begin += kItems) {
    const int64_t left = rows.size - begin;
    int64_t offset[kItems];
    for (int64_t i = 0; i < kItems; ++i) {
      offset[i] = int64_t{rows[begin + (i < left ? i : left - 1)]} * vectors.cols;
    }
    prefetch_rows(vectors, rows, begin + kItems, kItems);
    const __m512 found = score_items(vectors.data, offset, query, vectors.cols);
    const auto mask = left < kItems ? static_cast<__mmask16>((1u << left) - 1) : __mmask16{0xffff};
    _mm512_mask_storeu_ps(scores + begin, mask, found);
  }
}

}  // namespace recengine
