#include <immintrin.h>

#include <cstring>

#include "ops/code_scan_kernel.h"

namespace recengine {
namespace {

// A step of a block, 16 items each.
struct Items {
  __m512i a, b, c, d;
};

// Sums of the first kQueries queries of a tile. A chain of members, not an array: GCC keeps each of
// them in a register.
template <int kQueries>
struct Sums {
  Sums<kQueries - 1> before;
  __m512i a = _mm512_setzero_si512();
  __m512i b = _mm512_setzero_si512();
  __m512i c = _mm512_setzero_si512();
  __m512i d = _mm512_setzero_si512();

  // `queries` points at the step's dimensions of the first query.
  inline __attribute__((always_inline)) void add(const Items& items, const int8_t* queries,
                                                 int64_t stride) {
    before.add(items, queries, stride);
    int32_t four;
    std::memcpy(&four, queries + (kQueries - 1) * stride, sizeof four);
    const __m512i query = _mm512_set1_epi32(four);
    a = _mm512_dpbusd_epi32(a, items.a, query);
    b = _mm512_dpbusd_epi32(b, items.b, query);
    c = _mm512_dpbusd_epi32(c, items.c, query);
    d = _mm512_dpbusd_epi32(d, items.d, query);
  }

  // Lanes in which any query has a hit. One test for a tile: hits are rare.
  inline __attribute__((always_inline)) __mmask16 any_hit(const CodeTile& tile) const {
    const __m512i most = _mm512_max_epi32(_mm512_max_epi32(a, b), _mm512_max_epi32(c, d));
    return before.any_hit(tile) | _mm512_cmpge_epi32_mask(most, least(tile));
  }

  uint32_t write(const CodeTile& tile, CodeHits& hits) const {
    constexpr int kQuery = kQueries - 1;
    const uint32_t any = before.write(tile, hits);
    const __mmask16 in_a = _mm512_cmpge_epi32_mask(a, least(tile));
    const __mmask16 in_b = _mm512_cmpge_epi32_mask(b, least(tile));
    const __mmask16 in_c = _mm512_cmpge_epi32_mask(c, least(tile));
    const __mmask16 in_d = _mm512_cmpge_epi32_mask(d, least(tile));
    const uint64_t found =
        uint64_t{_mm512_kunpackw(in_d, in_c)} << 32 | _mm512_kunpackw(in_b, in_a);
    if (found == 0) return any;
    hits.items[kQuery] = found;
    _mm512_storeu_si512(hits.products[kQuery], a);
    _mm512_storeu_si512(hits.products[kQuery] + 16, b);
    _mm512_storeu_si512(hits.products[kQuery] + 32, c);
    _mm512_storeu_si512(hits.products[kQuery] + 48, d);
    return any | 1u << kQuery;
  }

  static inline __attribute__((always_inline)) __m512i least(const CodeTile& tile) {
    return _mm512_set1_epi32(tile.thresholds[(kQueries - 1) * tile.threshold_stride]);
  }
};

template <>
struct Sums<0> {
  void add(const Items&, const int8_t*, int64_t) {}
  __mmask16 any_hit(const CodeTile&) const { return 0; }
  uint32_t write(const CodeTile&, CodeHits&) const { return 0; }
};

template <int kQueries, bool kFetch>
uint32_t scan(const CodeTile& tile, CodeHits& hits) {
  static_assert(kBlockItems * kStepDims == 4 * 64, "a step of a block is four registers");
  Sums<kQueries> sums;
  const int64_t stride = tile.steps * kStepDims;
  const uint8_t* codes = tile.codes;
  const int8_t* queries = tile.queries;
  for (int64_t step = 0; step < tile.steps; ++step) {
    if (kFetch) {
      // Evenly between the loads. Hardware prefetch stops at the end of a page; this does not.
      const uint8_t* const ahead = tile.ahead + (codes - tile.codes);
      for (int line = 0; line < 4; ++line) __builtin_prefetch(ahead + line * 64);
    }
    const Items items = {_mm512_loadu_si512(codes), _mm512_loadu_si512(codes + 64),
                         _mm512_loadu_si512(codes + 128), _mm512_loadu_si512(codes + 192)};
    sums.add(items, queries, stride);
    codes += kStepDims * kBlockItems;
    queries += kStepDims;
  }
  if (__builtin_expect(sums.any_hit(tile) == 0, 1)) return 0;
  return sums.write(tile, hits);
}

template <int kQueries>
uint32_t scan(const CodeTile& tile, CodeHits& hits) {
  return tile.ahead == nullptr ? scan<kQueries, false>(tile, hits)
                               : scan<kQueries, true>(tile, hits);
}

}  // namespace

uint32_t code_scan_avx512_vnni(const CodeTile& tile, CodeHits& hits) {
  switch (tile.count) {
    case 1:
      return scan<1>(tile, hits);
    case 2:
      return scan<2>(tile, hits);
    case 3:
      return scan<3>(tile, hits);
    case 4:
      return scan<4>(tile, hits);
    case 5:
      return scan<5>(tile, hits);
    default:
      return scan<kTileQueries>(tile, hits);
  }
}

}  // namespace recengine
