#include <immintrin.h>

#include <cstring>

#include "cpu/inline.h"
#include "ops/code_scan_kernel.h"

namespace recengine {
namespace {

constexpr int64_t kVectorBytes = 32;  // a register: a step of some items
constexpr int64_t kVectorItems = kVectorBytes / kStepDims;
constexpr int64_t kStepBytes = kBlockItems * kStepDims;
constexpr int kAtOnce = 2;  // vectors of items, whose codes of four steps are half of the registers
constexpr int64_t kLine = kAtOnce * kVectorBytes;
static_assert(kLine == 64 && kSummedSteps == 4, "a cache line of each of four steps");

RECENGINE_INLINE __m256i load(const uint8_t* codes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
}

// Four dimensions of a query, for every item.
RECENGINE_INLINE __m256i broadcast(const int8_t* query) {
  int32_t four;
  std::memcpy(&four, query, sizeof four);
  return _mm256_set1_epi32(four);
}

RECENGINE_INLINE __m256i threshold_of(const CodeTile& tile, int q) {
  return _mm256_set1_epi32(tile.thresholds[q * tile.threshold_stride]);
}

// By how much the products of some items reach the thresholds of the queries.
template <int kQueries>
using Sums = __m256i[kQueries][kAtOnce];

// Adds kSteps steps of queries that lie `stride` bytes apart from one to the next. Their products
// are summed in 16 bits, which kMostSummed keeps them within, and widened once: the multiplier is
// what limits this kernel.
template <int kQueries, int kSteps>
RECENGINE_INLINE void add(const uint8_t* at, const int8_t* queries, int64_t stride,
                          Sums<kQueries>& sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i codes[kSteps][kAtOnce];
  for (int step = 0; step < kSteps; ++step) {
    for (int i = 0; i < kAtOnce; ++i) {
      codes[step][i] = load(at + step * kStepBytes + i * kVectorBytes);
      __asm__("" : "+x"(codes[step][i]));  // GCC loads it again for every query otherwise
    }
  }
  for (int q = 0; q < kQueries; ++q) {
    __m256i words[kAtOnce];
    for (int step = 0; step < kSteps; ++step) {
      const __m256i query = broadcast(queries + step * stride + q * kStepDims);
      for (int i = 0; i < kAtOnce; ++i) {
        const __m256i products = _mm256_maddubs_epi16(codes[step][i], query);
        words[i] = step == 0 ? products : _mm256_add_epi16(words[i], products);
      }
    }
    for (int i = 0; i < kAtOnce; ++i) {
      sums[q][i] = _mm256_add_epi32(sums[q][i], _mm256_madd_epi16(words[i], ones));
    }
  }
}

// Adds the hits of two vectors to `hits`.
template <int kQueries>
uint32_t write(const CodeTile& tile, const Sums<kQueries>& sums, int first_query, int64_t first,
               CodeHits& hits) {
  uint32_t any = 0;
  for (int i = 0; i < kQueries; ++i) {
    for (int v = 0; v < kAtOnce; ++v) {
      const int below = _mm256_movemask_ps(_mm256_castsi256_ps(sums[i][v]));
      if (below == 0xff) continue;
      const int q = first_query + i;
      const int64_t item = first + v * kVectorItems;
      any |= 1u << q;
      hits.items[q] |= static_cast<uint64_t>(~below & 0xff) << item;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(hits.products[q] + item),
                          _mm256_add_epi32(sums[i][v], threshold_of(tile, q)));
    }
  }
  return any;
}

// Some queries of a tile.
template <int kQueries>
uint32_t scan(const CodeTile& tile, int first_query, const uint8_t* ahead, CodeHits& hits) {
  const int64_t stride = tile.count * kStepDims;
  uint32_t any = 0;
  for (int q = 0; q < kQueries; ++q) hits.items[first_query + q] = 0;
  for (int64_t first = 0; first < kBlockItems; first += kAtOnce * kVectorItems) {
    Sums<kQueries> sums;
    for (int q = 0; q < kQueries; ++q) {
      sums[q][0] = sums[q][1] =
          _mm256_sub_epi32(_mm256_setzero_si256(), threshold_of(tile, first_query + q));
    }
    const uint8_t* at = tile.codes + first * kStepDims;
    const int8_t* queries = tile.queries + first_query * kStepDims;
    int64_t step = 0;
    for (; step + kSummedSteps <= tile.steps; step += kSummedSteps) {
      // In the order of memory and evenly between the loads. Hardware prefetch stops at the end of
      // a page; this does not.
      for (int i = 0; i < kSummedSteps; ++i) __builtin_prefetch(ahead + i * kLine);
      ahead += kSummedSteps * kLine;
      add<kQueries, kSummedSteps>(at, queries, stride, sums);
      at += kSummedSteps * kStepBytes;
      queries += kSummedSteps * stride;
    }
    for (; step < tile.steps; ++step) {
      __builtin_prefetch(ahead);
      ahead += kLine;
      add<kQueries, 1>(at, queries, stride, sums);
      at += kStepBytes;
      queries += stride;
    }
    // Not negative where any query has a hit. One test for all: hits are rare.
    __m256i most = _mm256_max_epi32(sums[0][0], sums[0][1]);
    for (int q = 1; q < kQueries; ++q) {
      most = _mm256_max_epi32(most, _mm256_max_epi32(sums[q][0], sums[q][1]));
    }
    if (__builtin_expect(_mm256_movemask_ps(_mm256_castsi256_ps(most)) == 0xff, 1)) continue;
    any |= write<kQueries>(tile, sums, first_query, first, hits);
  }
  return any;
}

// The queries of a tile from `first` on, kQueries or all that are left.
template <int kQueries>
uint32_t scan_some(const CodeTile& tile, int first, const uint8_t* ahead, CodeHits& hits) {
  if constexpr (kQueries > 1) {
    if (tile.count - first < kQueries) {
      return scan_some<kQueries - 1>(tile, first, ahead, hits);
    }
  }
  return scan<kQueries>(tile, first, ahead, hits);
}

}  // namespace

void code_thresholds_avx2(const ThresholdTerms& query, const float* errors,
                          const float* inverse_scales, int64_t blocks, int32_t* thresholds) {
  constexpr int64_t kLanes = 8;
  const __m256 largest = _mm256_set1_ps(kLargestThreshold);
  const __m256 least = _mm256_set1_ps(-kLargestThreshold);
  int64_t b = 0;
  for (; b + kLanes <= blocks; b += kLanes) {
    const __m256 error_part =
        _mm256_mul_ps(_mm256_loadu_ps(errors + b), _mm256_set1_ps(query.error_share));
    const __m256 inverse =
        _mm256_mul_ps(_mm256_loadu_ps(inverse_scales + b), _mm256_set1_ps(query.inverse_scale));
    const __m256 product =
        _mm256_mul_ps(_mm256_sub_ps(_mm256_set1_ps(query.wanted), error_part), inverse);
    const __m256 clamped = _mm256_max_ps(_mm256_min_ps(largest, product), least);
    const __m256i rounded = _mm256_cvttps_epi32(clamped);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(thresholds + b),
                        _mm256_add_epi32(rounded, _mm256_set1_epi32(query.offset - 2)));
  }
  code_thresholds_portable(query, errors + b, inverse_scales + b, blocks - b, thresholds + b);
}

uint32_t code_scan_avx2(const CodeTile& tile, CodeHits& hits) {
  constexpr int kQueriesAtOnce = 4;  // more of their sums go through memory
  const uint8_t* ahead = tile.ahead == nullptr ? tile.codes : tile.ahead;
  uint32_t any = 0;
  for (int first = 0; first < tile.count; first += kQueriesAtOnce) {
    any |= scan_some<kQueriesAtOnce>(tile, first, ahead, hits);
    ahead = tile.codes;
  }
  return any;
}

}  // namespace recengine
