#include <immintrin.h>

#include <cstring>

#include "ops/code_scan_kernel.h"

namespace recengine {
namespace {

constexpr int kVectorItems = 8;
constexpr int kVectors = kBlockItems / kVectorItems;

// Four dimensions of a query as 16-bit values, twice in each 128-bit half.
__m256i broadcast_query(const int8_t* query) {
  int32_t bytes;
  std::memcpy(&bytes, query, sizeof bytes);
  const __m128i words = _mm_cvtepi8_epi16(_mm_cvtsi32_si128(bytes));
  return _mm256_broadcastq_epi64(words);
}

// Products of 8 items by one step: the two 32-bit halves of each item's sum, four items a vector.
void add_step(const uint8_t* codes, __m256i query, __m256i& low, __m256i& high) {
  const __m128i* half = reinterpret_cast<const __m128i*>(codes);
  const __m256i first = _mm256_cvtepu8_epi16(_mm_loadu_si128(half));
  const __m256i second = _mm256_cvtepu8_epi16(_mm_loadu_si128(half + 1));
  low = _mm256_add_epi32(low, _mm256_madd_epi16(first, query));
  high = _mm256_add_epi32(high, _mm256_madd_epi16(second, query));
}

}  // namespace

// 16-bit products: the 8-bit ones of this instruction set saturate.
uint32_t code_scan_avx2(const CodeTile& tile, CodeHits& hits) {
  uint32_t any = 0;
  for (int q = 0; q < tile.count; ++q) {
    const __m256i threshold = _mm256_set1_epi32(tile.thresholds[q * tile.threshold_stride]);
    uint64_t items = 0;
    // Half of the block at a time: its sums stay in registers.
    for (int begin = 0; begin < kVectors; begin += kVectors / 2) {
      __m256i low[kVectors / 2];
      __m256i high[kVectors / 2];
      for (int v = 0; v < kVectors / 2; ++v) low[v] = high[v] = _mm256_setzero_si256();
      for (int64_t step = 0; step < tile.steps; ++step) {
        const __m256i part = broadcast_query(tile.queries + (step * tile.count + q) * kStepDims);
        const uint8_t* codes = tile.codes + (step * kBlockItems + begin * kVectorItems) * kStepDims;
        for (int v = 0; v < kVectors / 2; ++v) {
          add_step(codes + v * kVectorItems * kStepDims, part, low[v], high[v]);
        }
      }
      for (int v = 0; v < kVectors / 2; ++v) {
        const int vector = begin + v;
        // hadd leaves items 0 1 4 5 | 2 3 6 7.
        const __m256i sums =
            _mm256_permute4x64_epi64(_mm256_hadd_epi32(low[v], high[v]), 0b11'01'10'00);
        const __m256i below = _mm256_cmpgt_epi32(threshold, sums);
        const auto hit =
            static_cast<uint32_t>(~_mm256_movemask_ps(_mm256_castsi256_ps(below))) & 0xff;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(hits.products[q] + vector * kVectorItems),
                            sums);
        items |= uint64_t{hit} << (vector * kVectorItems);
      }
    }
    hits.items[q] = items;
    if (items != 0) any |= 1u << q;
  }
  return any;
}

}  // namespace recengine
