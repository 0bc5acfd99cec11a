#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "ops/embedding_bag_loop.h"

namespace recengine {
namespace {

struct Avx2 {
  static constexpr int kWidth = 8;
  static constexpr bool kPaced = true;
  template <typename T>
  static constexpr int kAtOnce = std::is_same_v<T, Nibbles> ? 4 : 1;
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
    const __m256i low = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(bits));
    const __m256i pairs = _mm256_or_si256(low, _mm256_slli_epi64(low, 28));
    return _mm256_cvtepi32_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(15)));
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

  // 32 codes of 4 bits for four sums.
  static void add_scaled(Reg* sums, const Nibbles* codes, Reg factors) {
    const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    const __m128i fifteen = _mm_set1_epi8(15);
    const __m128i low = _mm_and_si128(pairs, fifteen);
    const __m128i high = _mm_and_si128(_mm_srli_epi16(pairs, 4), fifteen);
    const __m128i front = _mm_unpacklo_epi8(low, high);
    const __m128i back = _mm_unpackhi_epi8(low, high);
    const __m128i eights[] = {front, _mm_unpackhi_epi64(front, front), back,
                              _mm_unpackhi_epi64(back, back)};
    for (int v = 0; v < 4; ++v) {
      const Reg values = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eights[v]));
      sums[v] = add(sums[v], mul(values, factors));
    }
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
