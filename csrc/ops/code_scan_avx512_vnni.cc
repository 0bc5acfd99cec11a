#include <immintrin.h>

#include <cstring>

#include "cpu/inline.h"
#include "ops/code_scan_kernel.h"

namespace recengine {
namespace {

constexpr int kQueriesAtOnce = kVectorTileQueries;
constexpr int64_t kLine = kLineBytes;  // a register: a step of a group of items
static_assert(kLine == sizeof(__m512i) && kBlockGroups == 4, "a step of a block is four registers");

// How many groups are scanned at once: as many sums as hide each other's latency fill the
// registers.
constexpr int groups_at_once(int queries) { return queries <= 6 ? 4 : 2; }

// The empty statements here and below keep values in one register each: GCC loads codes again for
// every query and moves sums to and fro otherwise.
RECENGINE_INLINE __m512i load(const uint8_t* codes) {
  __m512i loaded = _mm512_loadu_si512(codes);
  __asm__("" : "+v"(loaded));
  return loaded;
}

RECENGINE_INLINE void fetch(const uint8_t* line) { __builtin_prefetch(line); }

// Four dimensions of a query, for every item.
RECENGINE_INLINE __m512i broadcast(const int8_t* query) {
  int32_t four;
  std::memcpy(&four, query, sizeof four);
  return _mm512_set1_epi32(four);
}

RECENGINE_INLINE void multiply_add(__m512i& sum, __m512i codes, __m512i query) {
  sum = _mm512_dpbusd_epi32(sum, codes, query);
  __asm__("" : "+v"(sum));
}

RECENGINE_INLINE __m512i threshold_of(const CodeTile& tile, int q) {
  return _mm512_set1_epi32(tile.thresholds[q * tile.threshold_stride]);
}

// A step of two or four groups.
struct Codes {
  __m512i a, b, c, d;
};

// By how much the products of some groups reach the thresholds of the first kQueries queries.
// A chain of members, not an array: GCC keeps each of them in a register.
template <int kQueries, int kAtOnce>
struct Sums {
  Sums<kQueries - 1, kAtOnce> before;
  __m512i a, b, c, d;

  RECENGINE_INLINE explicit Sums(const CodeTile& tile)
      : before(tile),
        a(_mm512_sub_epi32(_mm512_setzero_si512(), threshold_of(tile, kQueries - 1))),
        b(a),
        c(a),
        d(a) {}

  // `queries` points at the step's dimensions of the first query.
  RECENGINE_INLINE void add(const Codes& codes, const int8_t* queries) {
    before.add(codes, queries);
    const __m512i query = broadcast(queries + (kQueries - 1) * kStepDims);
    multiply_add(a, codes.a, query);
    multiply_add(b, codes.b, query);
    if constexpr (kAtOnce > 2) {
      multiply_add(c, codes.c, query);
      multiply_add(d, codes.d, query);
    }
  }

  // Not negative where any query has a hit. One test for all: hits are rare.
  RECENGINE_INLINE __m512i most() const {
    __m512i most = _mm512_max_epi32(before.most(), _mm512_max_epi32(a, b));
    if constexpr (kAtOnce > 2) most = _mm512_max_epi32(most, _mm512_max_epi32(c, d));
    return most;
  }

  // Of every group those of all queries.
  RECENGINE_INLINE void store(__m512i (*sums)[kQueriesAtOnce]) const {
    before.store(sums);
    sums[0][kQueries - 1] = a;
    sums[1][kQueries - 1] = b;
    if constexpr (kAtOnce > 2) {
      sums[2][kQueries - 1] = c;
      sums[3][kQueries - 1] = d;
    }
  }
};

template <int kAtOnce>
struct Sums<0, kAtOnce> {
  RECENGINE_INLINE explicit Sums(const CodeTile&) {}
  RECENGINE_INLINE void add(const Codes&, const int8_t*) {}
  RECENGINE_INLINE __m512i most() const { return _mm512_set1_epi32(-1); }
  RECENGINE_INLINE void store(__m512i (*)[kQueriesAtOnce]) const {}
};

// Adds the hits of kAtOnce groups from `first` on to `hits`; `sums` are [groups][queries].
// Not inlined: the scan is entered for every block, and hits, whose frame is large, are rare.
template <int kQueries, int kAtOnce>
__attribute__((noinline)) uint32_t write(const CodeTile& tile,
                                         const __m512i (*sums)[kQueriesAtOnce], int64_t first,
                                         CodeHits& hits) {
  __m512i found = _mm512_setzero_si512();  // bit q in lanes where query q has a hit
#pragma GCC unroll 12
  for (int q = 0; q < kQueries; ++q) {
    __m512i most = _mm512_max_epi32(sums[0][q], sums[1][q]);
    if constexpr (kAtOnce > 2) {
      most = _mm512_max_epi32(most, _mm512_max_epi32(sums[2][q], sums[3][q]));
    }
    const auto lanes = static_cast<__mmask16>(~_mm512_movepi32_mask(most));
    found = _mm512_mask_or_epi32(found, lanes, found, _mm512_set1_epi32(1 << q));
  }
  const auto any = static_cast<uint32_t>(_mm512_reduce_or_epi32(found));
  for (uint32_t left = any; left != 0; left &= left - 1) {
    const int q = __builtin_ctz(left);
    const __m512i threshold = threshold_of(tile, q);
    for (int i = 0; i < kAtOnce; ++i) {
      const uint64_t items = static_cast<uint16_t>(~_mm512_movepi32_mask(sums[i][q]));
      hits.items[q] |= items << ((first + i) * kGroupItems);
      _mm512_storeu_si512(hits.products[q] + (first + i) * kGroupItems,
                          _mm512_add_epi32(sums[i][q], threshold));
    }
  }
  return any;
}

template <int kQueries>
uint32_t scan(const CodeTile& tile, CodeHits& hits) {
  constexpr int kAtOnce = groups_at_once(kQueries);
  for (int q = 0; q < kQueries; ++q) hits.items[q] = 0;
  uint32_t any = 0;
  const bool fetches = tile.ahead.lines > 0;
  const uint8_t* ahead = fetches ? tile.ahead.high : tile.codes;
  for (int64_t group = 0; group < kBlockGroups; group += kAtOnce) {
    Sums<kQueries, kAtOnce> sums(tile);
    // Two of four groups fetch all that is ahead of the high bits, two that of the low ones.
    const uint8_t* also = fetches ? tile.ahead.low : tile.codes;
    if (kAtOnce == 2 && group > 0) ahead = also;
    const uint8_t* at = tile.codes + group * kLine;
    const int8_t* queries = tile.queries;
    for (int64_t step = 0; step < tile.steps; ++step) {
      // In the order of memory and evenly between the loads. Hardware prefetch stops at the end of
      // a page; this does not.
      fetch(ahead);
      fetch(ahead + kLine);
      ahead += 2 * kLine;
      if constexpr (kAtOnce > 2) {
        fetch(also);
        fetch(also + kLine);
        also += 2 * kLine;
      }
      Codes codes;
      codes.a = load(at);
      codes.b = load(at + kLine);
      if constexpr (kAtOnce > 2) {
        codes.c = load(at + 2 * kLine);
        codes.d = load(at + 3 * kLine);
      }
      sums.add(codes, queries);
      at += kStepBytes;
      queries += kQueries * kStepDims;
    }
    if (__builtin_expect(_mm512_movepi32_mask(sums.most()) == 0xffff, 1)) continue;
    __m512i stored[kAtOnce][kQueriesAtOnce];
    sums.store(stored);
    any |= write<kQueries, kAtOnce>(tile, stored, group, hits);
  }
  return any;
}

// Into the second level of caches, which has more lines on their way than the first.
RECENGINE_INLINE void fetch_later(const uint8_t* line) { __builtin_prefetch(line, 0, 2); }

RECENGINE_INLINE void store(uint8_t* codes, __m512i values) { _mm512_storeu_si512(codes, values); }

// The upper nibbles of one and the lower ones of the other.
RECENGINE_INLINE __m512i join(__m512i upper, __m512i lower) {
  constexpr int kChoose = 0xca;  // where the first has a bit the second's, else the third's
  return _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x0f), lower, upper, kChoose);
}

// Nibbles in the place of their neighbours; the others are of no use.
RECENGINE_INLINE __m512i up(__m512i nibbles) { return _mm512_slli_epi32(nibbles, 4); }
RECENGINE_INLINE __m512i down(__m512i nibbles) { return _mm512_srli_epi32(nibbles, 4); }

template <int kQueries>
uint32_t scan_count(const CodeTile& tile, CodeHits& hits) {
  if constexpr (kQueries > 1) {
    if (tile.count < kQueries) return scan_count<kQueries - 1>(tile, hits);
  }
  return scan<kQueries>(tile, hits);
}

}  // namespace

void code_thresholds_avx512_vnni(const ThresholdTerms& query, const float* errors,
                                 const float* inverse_scales, int64_t blocks, int32_t* thresholds) {
  constexpr int64_t kLanes = 16;
  const __m512 largest = _mm512_set1_ps(kLargestThreshold);
  const __m512 least = _mm512_set1_ps(-kLargestThreshold);
  for (int64_t b = 0; b < blocks; b += kLanes) {
    const int64_t left = blocks - b;
    const auto mask = left < kLanes ? static_cast<__mmask16>((1u << left) - 1) : __mmask16{0xffff};
    const __m512 error_part =
        _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, errors + b), _mm512_set1_ps(query.error_share));
    const __m512 inverse = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, inverse_scales + b),
                                         _mm512_set1_ps(query.inverse_scale));
    const __m512 product =
        _mm512_mul_ps(_mm512_sub_ps(_mm512_set1_ps(query.wanted), error_part), inverse);
    const __m512 clamped = _mm512_max_ps(_mm512_min_ps(product, largest), least);
    const __m512i rounded = _mm512_cvttps_epi32(clamped);
    _mm512_mask_storeu_epi32(thresholds + b, mask,
                             _mm512_add_epi32(rounded, _mm512_set1_epi32(query.offset - 2)));
  }
}

uint32_t code_scan_avx512_vnni(const CodeTile& tile, CodeHits& hits) {
  return scan_count<kQueriesAtOnce>(tile, hits);
}

void code_unpack_avx512_vnni(const CodeHalves& halves, uint8_t* codes) {
  const int64_t pairs = halves.steps / 2;
  const int64_t begin = halves.begin;
  const int64_t end = halves.end;
  const int64_t whole = end < pairs ? end : pairs;
  const int64_t apart = pairs * kLine;  // from a group's low bits to the next one's
  const bool fetches = halves.ahead_high != nullptr;
  const uint8_t* high = halves.high + begin * kStepBytes;
  const uint8_t* low = halves.low + begin * kLine;
  const uint8_t* ahead_high = (fetches ? halves.ahead_high : halves.high) + begin * kStepBytes;
  const uint8_t* ahead_low = (fetches ? halves.ahead_low : halves.low) + begin * kLine;
  for (int64_t pair = begin; pair < whole; ++pair) {
#pragma GCC unroll 2
    for (int64_t i = 0; i < 2; ++i) {  // two groups
      fetch_later(ahead_high + i * kLine);
      fetch_later(ahead_high + (2 + i) * kLine);
      fetch_later(ahead_low + 2 * i * apart);
      fetch_later(ahead_low + (2 * i + 1) * apart);
      const __m512i high_a = _mm512_loadu_si512(high + i * kLine);
      const __m512i high_b = _mm512_loadu_si512(high + (2 + i) * kLine);
      const __m512i low_a = _mm512_loadu_si512(low + 2 * i * apart);
      const __m512i low_b = _mm512_loadu_si512(low + (2 * i + 1) * apart);
      uint8_t* const to = codes + 2 * i * kLine;
      store(to, join(high_a, low_a));
      store(to + kLine, join(up(high_a), low_b));
      store(to + kStepBytes, join(high_b, down(low_a)));
      store(to + kStepBytes + kLine, join(up(high_b), down(low_b)));
    }
    high += kStepBytes;
    low += kLine;
    ahead_high += kStepBytes;
    ahead_low += kLine;
    codes += 2 * kStepBytes;
  }
  if (whole == end) return;
  const int64_t last = pairs * kStepBytes;
  for (int64_t i = 0; i < 2; ++i) {
    if (fetches) {
      fetch_later(halves.ahead_high + last + i * kLine);
      fetch_later(halves.ahead_low + last + i * kLine);
    }
    const __m512i upper = _mm512_loadu_si512(halves.high + last + i * kLine);
    const __m512i lower = _mm512_loadu_si512(halves.low + last + i * kLine);
    store(codes + 2 * i * kLine, join(upper, down(lower)));
    store(codes + (2 * i + 1) * kLine, join(up(upper), lower));
  }
}

uint64_t coarse_scan_avx512_vnni(const CoarseTile& tile, int32_t* products) {
  const __m512i uppers = _mm512_set1_epi8(static_cast<char>(kHighBits));
  const __m512i lowers = _mm512_set1_epi8(0x0f);
  __m512i a = _mm512_setzero_si512();  // of groups 0 and 2
  __m512i c = _mm512_setzero_si512();
  __m512i b = _mm512_setzero_si512();  // of groups 1 and 3, in sixteenths
  __m512i d = _mm512_setzero_si512();
  const uint8_t* high = tile.high;
  const uint8_t* ahead = tile.ahead;
  for (int64_t step = 0; step < tile.steps; ++step) {
    fetch(ahead);
    fetch(ahead + kLine);
    const __m512i query = broadcast(tile.query + step * kStepDims);
    const __m512i first = _mm512_loadu_si512(high);
    const __m512i second = _mm512_loadu_si512(high + kLine);
    a = _mm512_dpbusd_epi32(a, _mm512_and_si512(first, uppers), query);
    b = _mm512_dpbusd_epi32(b, _mm512_and_si512(first, lowers), query);
    c = _mm512_dpbusd_epi32(c, _mm512_and_si512(second, uppers), query);
    d = _mm512_dpbusd_epi32(d, _mm512_and_si512(second, lowers), query);
    high += kStepBytes / 2;
    ahead += kStepBytes / 2;
  }
  b = _mm512_slli_epi32(b, 4);
  d = _mm512_slli_epi32(d, 4);
  const __m512i threshold = _mm512_set1_epi32(tile.threshold);
  const __m512i most = _mm512_max_epi32(_mm512_max_epi32(a, b), _mm512_max_epi32(c, d));
  if (_mm512_cmpge_epi32_mask(most, threshold) == 0) return 0;
  uint64_t items = 0;
  const __m512i sums[] = {a, b, c, d};
  for (int64_t group = 0; group < kBlockGroups; ++group) {
    _mm512_storeu_si512(products + group * kGroupItems, sums[group]);
    const uint64_t found = _mm512_cmpge_epi32_mask(sums[group], threshold);
    items |= found << (group * kGroupItems);
  }
  return items;
}

uint32_t low_scan_avx512_vnni(const LowTile& tile, int32_t* products) {
  const __m512i lowers = _mm512_set1_epi8(0x0f);
  __m512i a = _mm512_loadu_si512(products);
  __m512i b = _mm512_setzero_si512();
  const int64_t pairs = tile.steps / 2;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const __m512i low = _mm512_loadu_si512(tile.low + pair * kLine);
    const int8_t* const query = tile.query + 2 * pair * kStepDims;
    a = _mm512_dpbusd_epi32(a, _mm512_and_si512(low, lowers), broadcast(query));
    b = _mm512_dpbusd_epi32(b, _mm512_and_si512(down(low), lowers), broadcast(query + kStepDims));
  }
  if (tile.steps % 2 == 1) {
    const __m512i last = _mm512_loadu_si512(tile.last);
    const __m512i low = tile.group % 2 == 0 ? down(last) : last;
    const int8_t* const query = tile.query + 2 * pairs * kStepDims;
    a = _mm512_dpbusd_epi32(a, _mm512_and_si512(low, lowers), broadcast(query));
  }
  const __m512i sums = _mm512_add_epi32(a, b);
  _mm512_storeu_si512(products, sums);
  return _mm512_cmpge_epi32_mask(sums, _mm512_set1_epi32(tile.threshold));
}

}  // namespace recengine
