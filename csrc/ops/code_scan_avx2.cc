#include <immintrin.h>

#include <cstring>

#include "cpu/inline.h"
#include "ops/code_scan_kernel.h"

namespace recengine {
namespace {

constexpr int64_t kVectorBytes = 32;  // a register: a step of some items
constexpr int64_t kVectorItems = kVectorBytes / kStepDims;
constexpr int kAtOnce = 2;  // vectors of items, whose codes of four steps are half of the registers
static_assert(kAtOnce * kVectorBytes == kLineBytes, "a cache line of each step");

RECENGINE_INLINE __m256i load(const uint8_t* codes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
}

RECENGINE_INLINE void fetch(const uint8_t* line) { __builtin_prefetch(line); }

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
uint32_t scan(const CodeTile& tile, int first_query, const CodesAhead& lines, CodeHits& hits) {
  const int64_t stride = tile.count * kStepDims;
  uint32_t any = 0;
  for (int q = 0; q < kQueries; ++q) hits.items[first_query + q] = 0;
  const uint8_t* ahead = lines.high;
  for (int64_t first = 0; first < kBlockItems; first += kAtOnce * kVectorItems) {
    Sums<kQueries> sums;
    for (int q = 0; q < kQueries; ++q) {
      sums[q][0] = sums[q][1] =
          _mm256_sub_epi32(_mm256_setzero_si256(), threshold_of(tile, first_query + q));
    }
    if (first == kBlockItems / 2) ahead = lines.low;
    const uint8_t* at = tile.codes + first * kStepDims;
    const int8_t* queries = tile.queries + first_query * kStepDims;
    int64_t step = 0;
    for (; step + kSummedSteps <= tile.steps; step += kSummedSteps) {
      // In the order of memory and evenly between the loads. Hardware prefetch stops at the end of
      // a page; this does not.
      for (int i = 0; i < kSummedSteps; ++i) fetch(ahead + i * kLineBytes);
      ahead += kSummedSteps * kLineBytes;
      add<kQueries, kSummedSteps>(at, queries, stride, sums);
      at += kSummedSteps * kStepBytes;
      queries += kSummedSteps * stride;
    }
    for (; step < tile.steps; ++step) {
      fetch(ahead);
      ahead += kLineBytes;
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
uint32_t scan_some(const CodeTile& tile, int first, const CodesAhead& ahead, CodeHits& hits) {
  if constexpr (kQueries > 1) {
    if (tile.count - first < kQueries) return scan_some<kQueries - 1>(tile, first, ahead, hits);
  }
  return scan<kQueries>(tile, first, ahead, hits);
}

// Nibbles, the upper ones in their place.
RECENGINE_INLINE __m256i uppers(__m256i nibbles) {
  return _mm256_and_si256(nibbles, _mm256_set1_epi8(static_cast<char>(kHighBits)));
}
RECENGINE_INLINE __m256i lowers(__m256i nibbles) {
  return _mm256_and_si256(nibbles, _mm256_set1_epi8(0x0f));
}

// Nibbles in the place of their neighbours; the others are of no use.
RECENGINE_INLINE __m256i up(__m256i nibbles) { return _mm256_slli_epi32(nibbles, 4); }
RECENGINE_INLINE __m256i down(__m256i nibbles) { return _mm256_srli_epi32(nibbles, 4); }

// The upper nibbles of one and the lower ones of the other.
RECENGINE_INLINE void join(__m256i upper, __m256i lower, uint8_t* codes) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes),
                      _mm256_or_si256(uppers(upper), lowers(lower)));
}

// The sums of products of 16 bits in pairs, added to sums of 32.
RECENGINE_INLINE __m256i widen(__m256i sums, __m256i words) {
  return _mm256_add_epi32(sums, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
}

// The high bits of eight items each of two groups over some steps, from `at` on.
template <int kSteps>
RECENGINE_INLINE void add_high(const uint8_t* at, const int8_t* query, const uint8_t* ahead,
                               __m256i& upper, __m256i& lower) {
  __m256i upper_words = _mm256_setzero_si256();
  __m256i lower_words = _mm256_setzero_si256();
  for (int step = 0; step < kSteps; ++step) {
    fetch(ahead + step * kStepBytes / 2);
    const __m256i codes = load(at + step * kStepBytes / 2);
    const __m256i part = broadcast(query + step * kStepDims);
    upper_words = _mm256_add_epi16(upper_words, _mm256_maddubs_epi16(uppers(codes), part));
    lower_words = _mm256_add_epi16(lower_words, _mm256_maddubs_epi16(lowers(codes), part));
  }
  upper = widen(upper, upper_words);
  lower = widen(lower, lower_words);
}

// The products of eight items each of two groups, `first` bytes from the beginning of a step.
RECENGINE_INLINE void high_products(const CoarseTile& tile, int64_t first, __m256i& upper,
                                    __m256i& lower) {
  upper = lower = _mm256_setzero_si256();
  const uint8_t* at = tile.high + first;
  const uint8_t* ahead = tile.ahead + first;
  const int8_t* query = tile.query;
  int64_t step = 0;
  for (; step + kSummedSteps <= tile.steps; step += kSummedSteps) {
    add_high<kSummedSteps>(at, query, ahead, upper, lower);
    at += kSummedSteps * kStepBytes / 2;
    ahead += kSummedSteps * kStepBytes / 2;
    query += kSummedSteps * kStepDims;
  }
  for (; step < tile.steps; ++step) {
    add_high<1>(at, query, ahead, upper, lower);
    at += kStepBytes / 2;
    ahead += kStepBytes / 2;
    query += kStepDims;
  }
  lower = up(lower);
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
  uint32_t any = 0;
  for (int first = 0; first < tile.count; first += kQueriesAtOnce) {
    const bool fetches = first == 0 && tile.ahead.lines > 0;
    const CodesAhead none = {tile.codes, tile.codes};
    any |= scan_some<kQueriesAtOnce>(tile, first, fetches ? tile.ahead : none, hits);
  }
  return any;
}

void code_unpack_avx2(const CodeHalves& halves, uint8_t* codes) {
  const int64_t pairs = halves.steps / 2;
  const int64_t begin = halves.begin;
  const int64_t end = halves.end;
  const int64_t whole = end < pairs ? end : pairs;
  const int64_t apart = pairs * kLineBytes;  // from a group's low bits to the next one's
  const bool fetches = halves.ahead_high != nullptr;
  const uint8_t* high = halves.high + begin * kStepBytes;
  const uint8_t* low = halves.low + begin * kLineBytes;
  const uint8_t* ahead_high = (fetches ? halves.ahead_high : halves.high) + begin * kStepBytes;
  const uint8_t* ahead_low = (fetches ? halves.ahead_low : halves.low) + begin * kLineBytes;
  for (int64_t pair = begin; pair < whole; ++pair) {
    for (int64_t i = 0; i < 2; ++i) {  // two groups
      fetch(ahead_high + i * kLineBytes);
      fetch(ahead_high + (2 + i) * kLineBytes);
      fetch(ahead_low + 2 * i * apart);
      fetch(ahead_low + (2 * i + 1) * apart);
      for (int64_t at = 0; at < kLineBytes; at += kVectorBytes) {
        const __m256i high_a = load(high + i * kLineBytes + at);
        const __m256i high_b = load(high + (2 + i) * kLineBytes + at);
        const __m256i low_a = load(low + 2 * i * apart + at);
        const __m256i low_b = load(low + (2 * i + 1) * apart + at);
        uint8_t* const to = codes + 2 * i * kLineBytes + at;
        join(high_a, low_a, to);
        join(up(high_a), low_b, to + kLineBytes);
        join(high_b, down(low_a), to + kStepBytes);
        join(up(high_b), down(low_b), to + kStepBytes + kLineBytes);
      }
    }
    high += kStepBytes;
    low += kLineBytes;
    ahead_high += kStepBytes;
    ahead_low += kLineBytes;
    codes += 2 * kStepBytes;
  }
  if (whole == end) return;
  const int64_t last = pairs * kStepBytes;
  for (int64_t at = 0; at < 2 * kLineBytes; at += kVectorBytes) {
    const __m256i upper = load(halves.high + last + at);
    const __m256i lower = load(halves.low + last + at);
    uint8_t* const to = codes + at / kLineBytes * 2 * kLineBytes + at % kLineBytes;
    join(upper, down(lower), to);
    join(up(upper), lower, to + kLineBytes);
  }
}

uint64_t coarse_scan_avx2(const CoarseTile& tile, int32_t* products) {
  constexpr int64_t kVectors = kBlockItems / kVectorItems;
  __m256i sums[kVectors];  // in the order of items
  for (int64_t i = 0; i < kVectors / 2; ++i) {
    const int64_t upper = i / 2 * 4 + i % 2;
    high_products(tile, i * kVectorBytes, sums[upper], sums[upper + 2]);
  }
  const __m256i below = _mm256_set1_epi32(tile.threshold - 1);
  __m256i any = _mm256_setzero_si256();
  for (const __m256i sum : sums) any = _mm256_or_si256(any, _mm256_cmpgt_epi32(sum, below));
  if (_mm256_testz_si256(any, any) != 0) return 0;
  uint64_t items = 0;
  for (int64_t i = 0; i < kVectors; ++i) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(products + i * kVectorItems), sums[i]);
    const __m256i found = _mm256_cmpgt_epi32(sums[i], below);
    const auto mask = static_cast<uint64_t>(_mm256_movemask_ps(_mm256_castsi256_ps(found)));
    items |= mask << (i * kVectorItems);
  }
  return items;
}

uint32_t low_scan_avx2(const LowTile& tile, int32_t* products) {
  const __m256i below = _mm256_set1_epi32(tile.threshold - 1);
  const int64_t pairs = tile.steps / 2;
  uint32_t items = 0;
  for (int64_t i = 0; i < kGroupItems; i += kVectorItems) {
    auto* const to = reinterpret_cast<__m256i*>(products + i);
    __m256i sums = _mm256_loadu_si256(to);
    const int64_t at = i * kStepDims;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const __m256i low = load(tile.low + pair * kLineBytes + at);
      const int8_t* const query = tile.query + 2 * pair * kStepDims;
      const __m256i words =
          _mm256_add_epi16(_mm256_maddubs_epi16(lowers(low), broadcast(query)),
                           _mm256_maddubs_epi16(lowers(down(low)), broadcast(query + kStepDims)));
      sums = widen(sums, words);
    }
    if (tile.steps % 2 == 1) {
      const __m256i last = load(tile.last + at);
      const __m256i low = lowers(tile.group % 2 == 0 ? down(last) : last);
      const int8_t* const query = tile.query + 2 * pairs * kStepDims;
      sums = widen(sums, _mm256_maddubs_epi16(low, broadcast(query)));
    }
    _mm256_storeu_si256(to, sums);
    const __m256i found = _mm256_cmpgt_epi32(sums, below);
    items |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(found))) << i;
  }
  return items;
}

}  // namespace recengine
