#pragma once

// fp16 storage and its conversions; see cuda_runtime.h.

#include <cstdint>

#include "cuda_runtime.h"

// g++ converts _Float16 with or without instructions for it.
__extension__ using CudaEmulatedFloat16 = _Float16;

struct __half_raw {
  unsigned short x;
};
struct alignas(2) __half {
  unsigned short bits = 0;
  __half() = default;
  __half(const __half_raw& raw) : bits(raw.x) {}
};
struct alignas(4) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;

inline float __half2float(__half value) {
  return static_cast<float>(cuda_emulated_bits<CudaEmulatedFloat16>(value.bits));
}
inline __half __float2half_rn(float value) {
  return __half_raw{cuda_emulated_bits<unsigned short>(static_cast<CudaEmulatedFloat16>(value))};
}
inline __half __float2half(float value) { return __float2half_rn(value); }
inline __half __ushort_as_half(unsigned short bits) { return __half_raw{bits}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline float2 __half22float2(__half2 pair) { return {__half2float(pair.x), __half2float(pair.y)}; }
inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
