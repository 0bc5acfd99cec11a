#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "ops/embedding_bag_loop.h"

namespace recengine {
namespace {

__mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1); }

template <typename Prefetching>
struct Avx512 : Prefetching {
  static constexpr int kWidth = 16;
  using Reg = __m512;

  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg broadcast(float value) { return _mm512_set1_ps(value); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }

  static Reg load(const float* values) { return _mm512_loadu_ps(values); }
  static Reg load(const Half* halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
  }
  static Reg load(const Bfloat* values) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
  }
  static Reg load(const int8_t* codes) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))));
  }
  static Reg load(const uint8_t* codes) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))));
  }

  static Reg load_part(const float* values, int count) {
    return _mm512_maskz_loadu_ps(first(count), values);
  }
  static Reg load_part(const Half* halves, int count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), halves));
  }
  static Reg load_part(const Bfloat* values, int count) {
    return widen(_mm256_maskz_loadu_epi16(first(count), values));
  }
  static Reg load_part(const int8_t* codes, int count) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(count), codes)));
  }
  static Reg load_part(const uint8_t* codes, int count) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(count), codes)));
  }
  static Reg load_part(const Nibbles* codes, int count) {
    const __m128i pairs = _mm_maskz_loadu_epi8(first((count + 1) / 2), codes);
    return _mm512_cvtepi32_ps(_mm512_and_si512(split(pairs), _mm512_set1_epi32(15)));
  }

  // What the values of a row are multiplied by. 4-bit codes: all sixteen products instead, which
  // the codes then choose from.
  template <typename T>
  static Reg spread(float factor) {
    const Reg factors = broadcast(factor);
    if constexpr (!std::is_same_v<T, Nibbles>) return factors;
    return mul(_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), factors);
  }
  template <typename T>
  static Reg scaled(const T* values, Reg factors) {
    return mul(load(values), factors);
  }
  static Reg scaled(const Nibbles* codes, Reg products) {
    const __m128i pairs = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
    return _mm512_permutexvar_ps(split(pairs), products);
  }

  // Two fp16 values at any address.
  static ScaleAndBias load_halves(const char* at) {
    int32_t bits;
    std::memcpy(&bits, at, sizeof bits);
    const __m128 values = _mm_cvtph_ps(_mm_cvtsi32_si128(bits));
    return {_mm_cvtss_f32(values), _mm_cvtss_f32(_mm_movehdup_ps(values))};
  }

  static void store(float* out, Reg reg) { _mm512_storeu_ps(out, reg); }
  static void store_part(float* out, Reg reg, int count) {
    _mm512_mask_storeu_ps(out, first(count), reg);
  }

 private:
  static Reg widen(__m256i bfloats) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloats), 16));
  }
  // Eight pairs of 4-bit codes to the low bits of sixteen lanes; higher bits hold anything.
  static __m512i split(__m128i pairs) {
    const __m512i low = _mm512_cvtepu8_epi64(pairs);
    return _mm512_or_si512(low, _mm512_slli_epi64(low, 28));
  }
};

// Whether a chunk has little to do between its rows' lines: long rows, or few to a bag. Where there
// is more, as in sums over many rows of codes, prefetches between the rows hold it up.
bool waits_for_rows(const BagChunk& chunk) {
  constexpr int64_t kLongRow = 4 * kLineBytes;
  constexpr int64_t kShortBag = 4;
  int64_t row_bytes = 0;
  for (int64_t c = 0; c < chunk.num_columns; ++c) row_bytes += chunk.columns[c].table->row_bytes;
  if (row_bytes >= kLongRow * chunk.num_columns) return true;
  const int64_t bags = chunk.batch * chunk.num_columns;
  int64_t rows = 0;
  for (int64_t bag = 0; bag < bags; ++bag) rows += chunk.lengths[bag];
  return rows < kShortBag * bags;
}

}  // namespace

bool embedding_bag_avx512(const BagChunk& chunk) {
  return embedding_bag_loop<Avx512<InBlocks>>(chunk);
}

bool embedding_bag_avx512_paced(const BagChunk& chunk) {
  // Into the second level, which has three times as many lines on their way as the first.
  using Paced = RowByRow</*kLines=*/512, /*kRows=*/64, /*kLocality=*/2>;
  return waits_for_rows(chunk) ? embedding_bag_loop<Avx512<Paced>>(chunk)
                               : embedding_bag_loop<Avx512<InBlocks>>(chunk);
}

}  // namespace recengine
