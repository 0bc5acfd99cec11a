#include <immintrin.h>

#include "ops/embedding_bag_loop.h"

namespace recengine {
namespace {

struct Avx2 {
  static constexpr int kWidth = 8;
  using Reg = __m256;

  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg broadcast(float value) { return _mm256_set1_ps(value); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }

  static Reg load(const float* values) { return _mm256_loadu_ps(values); }
  static Reg load(const uint16_t* halves) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
  }
  static Reg load(const int8_t* codes) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes))));
  }

  // AVX2 has no masked loads of bytes: a tail goes through a buffer.
  template <typename T>
  static Reg load_part(const T* values, int count) {
    T buffer[kWidth] = {};
    for (int i = 0; i < count; ++i) buffer[i] = values[i];
    return load(buffer);
  }

  static void store(float* out, Reg reg) { _mm256_storeu_ps(out, reg); }
  static void store_part(float* out, Reg reg, int count) {
    float buffer[kWidth];
    store(buffer, reg);
    for (int i = 0; i < count; ++i) out[i] = buffer[i];
  }
};

}  // namespace

void embedding_bag_avx2(const BagChunk& chunk) { embedding_bag_loop<Avx2>(chunk); }

}  // namespace recengine
