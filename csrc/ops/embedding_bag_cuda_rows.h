#pragma once

// How a lane reads its part of an embedding row and adds it to its sums.

#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/launch.h"
#include "recengine/table.h"

namespace recengine {

// Bits of a stored value.
template <RowType kType>
constexpr int kValueBits = 8;
template <>
constexpr int kValueBits<RowType::kFloat32> = 32;
template <>
constexpr int kValueBits<RowType::kFloat16> = 16;
template <>
constexpr int kValueBits<RowType::kBfloat16> = 16;
template <>
constexpr int kValueBits<RowType::kFusedInt4> = 4;

template <RowType kType>
constexpr bool kHasBias = kType == RowType::kFusedInt8 || kType == RowType::kFusedInt4;

// Below 2^23 an integer is the float 2^23 + it without its exponent: one or, one subtraction, where
// a conversion would take a unit that is four times as slow.
__device__ __forceinline__ float small_integer(uint32_t bits, float shift) {
  return __fsub_rn(__uint_as_float(bits | 0x4b000000u), 8388608.0f + shift);
}

// Value i of those in a word.
template <RowType kType>
__device__ __forceinline__ float stored_value(uint32_t word, int i) {
  if constexpr (kType == RowType::kFloat32) {
    return __uint_as_float(word);
  } else if constexpr (kType == RowType::kFloat16) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16 * i)));
  } else if constexpr (kType == RowType::kBfloat16) {
    return __uint_as_float(i == 0 ? word << 16 : word & 0xffff0000u);
  } else if constexpr (kType == RowType::kInt8) {
    return small_integer((word ^ 0x80808080u) >> 8 * i & 255, 128.0f);
  } else if constexpr (kType == RowType::kFusedInt8) {
    return small_integer(word >> 8 * i & 255, 0.0f);
  } else {
    return small_integer(word >> 4 * i & 15, 0.0f);
  }
}

// What a lane loads of a row at once: 16 bytes where all rows begin at multiples of that, else the
// bytes of one value, or of two of 4 bits.
template <RowType kType, bool kWide>
struct RowPart {
  static constexpr int kBytes = kWide ? 16 : kValueBits<kType> > 8 ? kValueBits<kType> / 8 : 1;
  static constexpr int kValues = 8 * kBytes / kValueBits<kType>;
  static constexpr int kWords = kWide ? 4 : 1;
  static constexpr int kWordValues = kValues / kWords;

  uint32_t words[kWords];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (uint32_t& word : words) word = 0;
  }

  __device__ __forceinline__ void load(const char* from) {
    if constexpr (kWide) {
      const uint4 loaded = __ldg(reinterpret_cast<const uint4*>(from));
      words[0] = loaded.x;
      words[1] = loaded.y;
      words[2] = loaded.z;
      words[3] = loaded.w;
    } else if constexpr (kBytes == 4) {
      words[0] = __ldg(reinterpret_cast<const unsigned*>(from));
    } else if constexpr (kBytes == 2) {
      words[0] = __ldg(reinterpret_cast<const unsigned short*>(from));
    } else {
      words[0] = __ldg(reinterpret_cast<const unsigned char*>(from));
    }
  }

  __device__ __forceinline__ void add_to(float* sums, float factor) const {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
#pragma unroll
      for (int i = 0; i < kWordValues; ++i) {
        float& sum = sums[w * kWordValues + i];
        sum = __fmaf_rn(stored_value<kType>(words[w], i), factor, sum);
      }
    }
  }
};

// Four bytes from an address of any alignment.
__device__ __forceinline__ uint32_t load_word(const char* from, bool aligned) {
  if (aligned) return __ldg(reinterpret_cast<const unsigned*>(from));
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    word |= uint32_t{__ldg(reinterpret_cast<const unsigned char*>(from) + i)} << 8 * i;
  }
  return word;
}

struct ScaleAndBias {
  float scale;
  float bias;
};

// Of a fused row.
__device__ __forceinline__ ScaleAndBias load_scale_and_bias(const char* from, bool half,
                                                            bool aligned) {
  const uint32_t first = load_word(from, aligned);
  if (half) {
    return {stored_value<RowType::kFloat16>(first, 0), stored_value<RowType::kFloat16>(first, 1)};
  }
  return {__uint_as_float(first), __uint_as_float(load_word(from + 4, aligned))};
}

}  // namespace recengine
