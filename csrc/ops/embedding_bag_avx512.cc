#include <immintrin.h>

#include "ops/embedding_bag_loop.h"

namespace recengine {
namespace {

__mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1); }

struct Avx512 {
  static constexpr int kWidth = 16;
  using Reg = __m512;

  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg broadcast(float value) { return _mm512_set1_ps(value); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }

  static Reg load(const float* values) { return _mm512_loadu_ps(values); }
  static Reg load(const uint16_t* halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
  }
  static Reg load(const int8_t* codes) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))));
  }

  static Reg load_part(const float* values, int count) {
    return _mm512_maskz_loadu_ps(first(count), values);
  }
  static Reg load_part(const uint16_t* halves, int count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), halves));
  }
  static Reg load_part(const int8_t* codes, int count) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(count), codes)));
  }

  static void store(float* out, Reg reg) { _mm512_storeu_ps(out, reg); }
  static void store_part(float* out, Reg reg, int count) {
    _mm512_mask_storeu_ps(out, first(count), reg);
  }
};

}  // namespace

void embedding_bag_avx512(const BagChunk& chunk) { embedding_bag_loop<Avx512>(chunk); }

}  // namespace recengine
