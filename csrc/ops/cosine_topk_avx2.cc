#include <immintrin.h>

#include "ops/cosine_topk_kernel.h"

namespace recengine {
namespace {

constexpr int kItems = 8;  // scored together, in two rounds of four
constexpr int kPerRound = 4;

__m256i first(int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}

// Adds the halves of two vectors: [a0 + a1, b0 + b1] in 128-bit blocks.
__m256 fold4(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
__m256 fold2(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
}
__m256 fold1(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}

// Four items: the tree's steps 8, 4 and 2. Lane pairs of the result belong to items 0, 2 | 1, 3.
__m256 round_of_four(const float* const* items, const float* query, int64_t dim) {
  __m256 low[kPerRound];   // lanes 0..7 of the score
  __m256 high[kPerRound];  // lanes 8..15
  for (int i = 0; i < kPerRound; ++i) low[i] = high[i] = _mm256_setzero_ps();
  int64_t d = 0;
  for (; d + kScoreLanes <= dim; d += kScoreLanes) {
    const __m256 query_low = _mm256_loadu_ps(query + d);
    const __m256 query_high = _mm256_loadu_ps(query + d + 8);
    for (int i = 0; i < kPerRound; ++i) {
      const float* item = items[i] + d;
      low[i] = _mm256_add_ps(low[i], _mm256_mul_ps(_mm256_loadu_ps(item), query_low));
      high[i] = _mm256_add_ps(high[i], _mm256_mul_ps(_mm256_loadu_ps(item + 8), query_high));
    }
  }
  if (d < dim) {
    const __m256i mask_low = first(dim - d);
    const __m256i mask_high = first(dim - d - 8);
    const __m256 query_low = _mm256_loadu_ps(query + d);
    const __m256 query_high = _mm256_loadu_ps(query + d + 8);
    for (int i = 0; i < kPerRound; ++i) {
      const __m256 item_low = _mm256_maskload_ps(items[i] + d, mask_low);
      const __m256 item_high = _mm256_maskload_ps(items[i] + d + 8, mask_high);
      low[i] = _mm256_add_ps(low[i], _mm256_mul_ps(item_low, query_low));
      high[i] = _mm256_add_ps(high[i], _mm256_mul_ps(item_high, query_high));
    }
  }
  __m256 sums[kPerRound];
  for (int i = 0; i < kPerRound; ++i) sums[i] = _mm256_add_ps(low[i], high[i]);
  return fold2(fold4(sums[0], sums[1]), fold4(sums[2], sums[3]));
}

// Scores of eight items, in order. The folds interleave, so the rounds take items out of order.
__m256 score_items(const float* const* items, const float* query, int64_t dim) {
  const float* even[kPerRound] = {items[0], items[4], items[1], items[5]};
  const float* odd[kPerRound] = {items[2], items[6], items[3], items[7]};
  return fold1(round_of_four(even, query, dim), round_of_four(odd, query, dim));
}

}  // namespace

int64_t cosine_scan_avx2(const ItemBlock& block, const float* query, float threshold,
                         int32_t* positions, float* scores) {
  const __m256 bound = _mm256_set1_ps(threshold);
  int64_t hits = 0;
  for (int64_t begin = 0; begin < block.count; begin += kItems) {
    const float* items[kItems];
    for (int64_t i = 0; i < kItems; ++i) {
      const int64_t item = begin + i < block.count ? begin + i : block.count - 1;
      items[i] = block.items + item * block.dim;
    }
    const __m256 found = score_items(items, query, block.dim);
    unsigned above =
        static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(found, bound, _CMP_GT_OQ)));
    if (block.count - begin < kItems) above &= (1u << (block.count - begin)) - 1;
    if (above == 0) continue;
    float values[kItems];
    _mm256_storeu_ps(values, found);
    for (; above != 0; above &= above - 1) {
      const int i = __builtin_ctz(above);
      positions[hits] = static_cast<int32_t>(begin) + i;
      scores[hits++] = values[i];
    }
  }
  return hits;
}

void cosine_gather_avx2(Matrix<const float> vectors, Span<const uint32_t> rows, const float* query,
                        float* scores) {
  prefetch_rows(vectors, rows, 0, kItems);
  for (int64_t begin = 0; begin < rows.size; begin += kItems) {
    const float* items[kItems];
    for (int64_t i = 0; i < kItems; ++i) {
      items[i] = vectors.row(rows[begin + i < rows.size ? begin + i : rows.size - 1]);
    }
    prefetch_rows(vectors, rows, begin + kItems, kItems);
    const __m256 found = score_items(items, query, vectors.cols);
    if (rows.size - begin >= kItems) {
      _mm256_storeu_ps(scores + begin, found);
    } else {
      _mm256_maskstore_ps(scores + begin, first(rows.size - begin), found);
    }
  }
}

}  // namespace recengine
