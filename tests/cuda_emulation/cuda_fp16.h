#pragma once

// fp16 storage and its conversions; see cuda_runtime.h.

#include <cstdint>

#include "cuda_runtime.h"

// g++ converts _Float16 with or without instructions for it.
__extension__ using CudaEmulatedFloat16 = _Float16;

struct __half {
  unsigned short bits;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline float __half2float(__half value) {
  return static_cast<float>(cuda_emulated_bits<CudaEmulatedFloat16>(value.bits));
}
