#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace recengine::cuda {

#ifdef RECENGINE_CUDA_EMULATED

inline void copy_async(uint4* shared, const uint4* global) { *shared = *global; }
inline void commit_copies() {}
template <int kPending>
void wait_for_copies() {}

#else

// Copies 16 bytes past the registers and the L1; both ends are aligned to 16.
__device__ __forceinline__ void copy_async(uint4* shared, const uint4* global) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

// Makes one group of the copies since the last one, which may be none.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most the last kPending groups of this thread are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#endif

}  // namespace recengine::cuda
