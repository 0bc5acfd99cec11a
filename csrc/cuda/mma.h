#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace recengine::cuda {

// A tile of 16 rows x 32 bytes, a tile of 32 bytes x 8 columns, and their 16 x 8 sums, spread over
// a warp: with group = lane / 4 and part = lane % 4, a lane holds
//   rows:     x = bytes 4 part .. + 3 of row group, y = of row group + 8, z, w = the same, 16 on
//   columns:  x = bytes 4 part .. + 3 of column group, y = 16 on
//   sums:     [2 half + side] = row group + 8 half, column 2 part + side
constexpr int kMmaRows = 16;
constexpr int kMmaColumns = 8;
constexpr int kMmaBytes = 32;

#ifdef RECENGINE_CUDA_EMULATED

struct MmaOperands {
  uint4 rows;
  uint2 columns;
};

inline int32_t mma_dot4(uint32_t a, uint32_t b) {
  int32_t sum = 0;
  for (int byte = 0; byte < 32; byte += 8) {
    sum += static_cast<int8_t>(a >> byte) * static_cast<int8_t>(b >> byte);
  }
  return sum;
}

inline void mma_s8(int32_t (&sums)[4], const uint4& rows, const uint2& columns) {
  static MmaOperands operands[32][32];  // [warps, lanes]
  MmaOperands* const warp = operands[threadIdx.x / 32];
  const int lane = static_cast<int>(threadIdx.x % 32);
  warp[lane] = {rows, columns};
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const MmaOperands* const row = warp + lane / 4 * 4;
    const MmaOperands* const column = warp + (2 * (lane % 4) + i % 2) * 4;
    for (int part = 0; part < 4; ++part) {
      const uint4 a = row[part].rows;
      const uint2 b = column[part].columns;
      sums[i] += mma_dot4(i < 2 ? a.x : a.y, b.x) + mma_dot4(i < 2 ? a.z : a.w, b.y);
    }
  }
  __syncwarp();
}

#else

// sums += rows * columns of signed bytes; by all lanes of a warp.
__device__ __forceinline__ void mma_s8(int32_t (&sums)[4], const uint4& rows,
                                       const uint2& columns) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(rows.x), "r"(rows.y), "r"(rows.z), "r"(rows.w), "r"(columns.x), "r"(columns.y));
}

#endif

}  // namespace recengine::cuda
