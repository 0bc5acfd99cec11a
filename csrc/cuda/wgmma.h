#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/mma.h"

#ifdef RECENGINE_CUDA_EMULATED
#include "wgmma_emulation.h"
#endif

namespace recengine::cuda {

// A product of 64 rows x 32 bytes and 32 bytes x kTiles * 8 columns by a warpgroup, four warps that
// begin at a multiple of four. Of the rows each warp has 16, in registers, and their sums with each
// 8 columns, both as mma_s8() has them. Columns are in shared memory: see wgmma_columns().
//
// A warpgroup begins with wgmma_fence(), multiplies, and then waits with wgmma_wait(); between the
// two nothing may read or write the sums, nor write the rows.
constexpr int kWgmmaThreads = 128;
constexpr int kWgmmaRows = 64;

// Whether this code is compiled with wgmma, which sm_90a has, and neither sm_90 nor sm_100.
#if defined(RECENGINE_CUDA_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasWgmma = true;
#else
constexpr bool kHasWgmma = false;
#endif

// Whether a device runs code that was compiled with wgmma.
bool device_has_wgmma(int device);

#ifdef RECENGINE_CUDA_EMULATED

inline uint32_t shared_address(const void* shared) {
  return cuda_emulation::shared_address(shared);
}
inline void fence_async_proxy() { cuda_emulation::fence_async_proxy(); }
inline void wgmma_fence() { cuda_emulation::wgmma_fence(); }
template <int kTiles>
void wgmma_s8(int32_t (&sums)[kTiles][4], const uint4& rows, uint64_t columns, bool accumulate) {
  cuda_emulation::wgmma({sums, kTiles, &rows, columns, accumulate});
}
inline void wgmma_commit() { cuda_emulation::wgmma_commit(); }
template <int kTiles, int kRows>
void wgmma_wait(int32_t (&)[kTiles][4], uint4 (&)[kRows]) {
  cuda_emulation::wgmma_wait();
}

#else

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// By each thread that wrote columns, before the barrier behind which they are multiplied.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

#define RECENGINE_SUMS(i) "+r"(sums[i][0]), "+r"(sums[i][1]), "+r"(sums[i][2]), "+r"(sums[i][3])
#define RECENGINE_4_SUMS(i) \
  RECENGINE_SUMS(i), RECENGINE_SUMS(i + 1), RECENGINE_SUMS(i + 2), RECENGINE_SUMS(i + 3)
#define RECENGINE_16_SUMS(i) \
  RECENGINE_4_SUMS(i), RECENGINE_4_SUMS(i + 4), RECENGINE_4_SUMS(i + 8), RECENGINE_4_SUMS(i + 12)
#define RECENGINE_64_NAMES                                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, " \
  "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, " \
  "%56, %57, %58, %59, %60, %61, %62, %63"
#define RECENGINE_64_MORE_NAMES                                                                \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, " \
  "%100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, " \
  "%115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// Begins sums = rows * columns of signed bytes, or sums += that; by all threads of a warpgroup.
template <int kTiles>
__device__ __forceinline__ void wgmma_s8(int32_t (&sums)[kTiles][4], const uint4& rows,
                                         uint64_t columns, bool accumulate) {
  static_assert(kTiles == 16 || kTiles == 32);
  if constexpr (kTiles == 16) {
    asm volatile(
        "{.reg .pred accumulate; setp.ne.b32 accumulate, %69, 0;"
        "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {" RECENGINE_64_NAMES
        "}, {%64, %65, %66, %67}, %68, accumulate;}"
        : RECENGINE_16_SUMS(0)
        : "r"(rows.x), "r"(rows.y), "r"(rows.z), "r"(rows.w), "l"(columns),
          "r"(static_cast<int>(accumulate)));
  } else {
    asm volatile(
        "{.reg .pred accumulate; setp.ne.b32 accumulate, %133, 0;"
        "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {" RECENGINE_64_NAMES
        ", " RECENGINE_64_MORE_NAMES "}, {%128, %129, %130, %131}, %132, accumulate;}"
        : RECENGINE_16_SUMS(0), RECENGINE_16_SUMS(16)
        : "r"(rows.x), "r"(rows.y), "r"(rows.z), "r"(rows.w), "l"(columns),
          "r"(static_cast<int>(accumulate)));
  }
}

#undef RECENGINE_SUMS
#undef RECENGINE_4_SUMS
#undef RECENGINE_16_SUMS
#undef RECENGINE_64_NAMES
#undef RECENGINE_64_MORE_NAMES

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits for all that was committed. Naming the registers keeps the compiler from reading the sums
// before, and from writing others into those of the rows.
template <int kTiles, int kRows>
__device__ __forceinline__ void wgmma_wait(int32_t (&sums)[kTiles][4], uint4 (&rows)[kRows]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < kTiles * 4; ++i) asm volatile("" : "+r"(sums[i / 4][i % 4])::"memory");
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    asm volatile("" : "+r"(rows[i].x), "+r"(rows[i].y), "+r"(rows[i].z), "+r"(rows[i].w)::"memory");
  }
}

#endif

// Says where the columns of a product are, each in two halves of 16 bytes. The halves of 8 columns
// follow each other; it is `tile_bytes` to those of the next 8, `half_bytes` to their other halves.
__device__ __forceinline__ uint64_t wgmma_columns(const uint4* shared, int tile_bytes,
                                                  int half_bytes) {
  constexpr uint64_t kMask = (1 << 14) - 1;  // of addresses and distances in 16 bytes
  const auto encode = [](uint64_t bytes) { return bytes >> 4 & kMask; };
  return encode(shared_address(shared)) | encode(static_cast<uint64_t>(half_bytes)) << 16 |
         encode(static_cast<uint64_t>(tile_bytes)) << 32;
}

}  // namespace recengine::cuda
