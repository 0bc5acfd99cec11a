#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "ops/embedding_bag_loop.h"

namespace recengine {
namespace {

struct Avx2 : RowByRow</*kLines=*/32, /*kRows=*/16, /*kLocality=*/3> {
  static constexpr int kWidth = 8;
  using Reg = __m256;

  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg broadcast(float value) { return _mm256_set1_ps(value); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }

  static Reg load(const float* values) { return _mm256_loadu_ps(values); }
  static Reg load(const Half* halves) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
  }
  static Reg load(const int8_t* codes) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes))));
  }

  static Reg load(const Bfloat* values) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static Reg load(const uint8_t* codes) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes))));
  }
  static Reg load(const Nibbles* codes) {
    int32_t bits;
    std::memcpy(&bits, codes, sizeof bits);
    const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const __m256i shifted = _mm256_srlv_epi32(_mm256_set1_epi32(bits), shifts);
    return _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(15)));
  }

  // AVX2 has no masked loads of bytes: a tail goes through a buffer.
  template <typename T>
  static Reg load_part(const T* values, int count) {
    T buffer[kWidth] = {};
    const int stored = std::is_same_v<T, Nibbles> ? (count + 1) / 2 : count;
    for (int i = 0; i < stored; ++i) buffer[i] = values[i];
    return load(buffer);
  }

  template <typename T>
  static Reg spread(float factor) {
    return broadcast(factor);
  }
  template <typename T>
  static Reg scaled(const T* values, Reg factors) {
    return mul(load(values), factors);
  }

  // Two fp16 values at any address.
  static ScaleAndBias load_halves(const char* at) {
    int32_t bits;
    std::memcpy(&bits, at, sizeof bits);
    const __m128 values = _mm_cvtph_ps(_mm_cvtsi32_si128(bits));
    return {_mm_cvtss_f32(values), _mm_cvtss_f32(_mm_movehdup_ps(values))};
  }

  static void store(float* out, Reg reg) { _mm256_storeu_ps(out, reg); }
  static void store_part(float* out, Reg reg, int count) {
    float buffer[kWidth];
    store(buffer, reg);
    for (int i = 0; i < count; ++i) out[i] = buffer[i];
  }
};

}  // namespace

bool embedding_bag_avx2(const BagChunk& chunk) { return embedding_bag_loop<Avx2>(chunk); }

}  // namespace recengine
