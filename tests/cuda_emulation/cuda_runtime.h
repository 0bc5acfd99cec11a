#pragma once

// Runs our CUDA sources on a CPU, so that tests need no GPU: g++ compiles them with this folder
// first on the include path. Each thread of a block is a fiber that runs until it waits, at a
// barrier or a warp primitive; blocks run one after the other. A wait that can never end is an
// error. What this cannot show: races that need true concurrency, coalescing, speed.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

using std::isfinite;
using std::max;
using std::min;

// ---- vectors ------------------------------------------------------------------------------------

#define CUDA_EMULATED_VECTORS(scalar, name)                                                     \
  struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; };                                  \
  struct alignas(sizeof(scalar) == 8 ? 16 : 4 * sizeof(scalar)) name##4 { scalar x, y, z, w; }; \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }                          \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
CUDA_EMULATED_VECTORS(signed char, char)
CUDA_EMULATED_VECTORS(unsigned char, uchar)
CUDA_EMULATED_VECTORS(short, short)
CUDA_EMULATED_VECTORS(unsigned short, ushort)
CUDA_EMULATED_VECTORS(int, int)
CUDA_EMULATED_VECTORS(unsigned, uint)
CUDA_EMULATED_VECTORS(long long, longlong)
CUDA_EMULATED_VECTORS(unsigned long long, ulonglong)
CUDA_EMULATED_VECTORS(float, float)
CUDA_EMULATED_VECTORS(double, double)
#undef CUDA_EMULATED_VECTORS

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_in = 1, unsigned y_in = 1, unsigned z_in = 1) : x(x_in), y(y_in), z(z_in) {}
};

// ---- where a thread is, and what it waits for
// ----------------------------------------------------

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
constexpr int warpSize = 32;

namespace cuda_emulation {

enum class Wait { kSyncThreads, kSyncWarp, kShuffle, kBallot };

// Waits for every live thread of the block.
void wait_for_block();

// Waits for the lanes of `mask`; returns the value that lane `source` of the warp brought. For
// kBallot: the lanes whose value is not 0.
uint64_t wait_for_warp(Wait kind, unsigned mask, uint64_t value, int source);

int lane();
void* dynamic_shared();
size_t dynamic_shared_bytes();

constexpr int kSharedBytes = 48 << 10;
constexpr int kOptInSharedBytes = 99 << 10;  // the least among GPUs since compute capability 8.0

// Ends the launch with an error.
[[noreturn]] void fail(const char* what);

template <typename T>
T shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles take 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = wait_for_warp(Wait::kShuffle, mask, bits, source);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename T>
const T& aligned(const T* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) % sizeof(T) != 0) fail("a load that is not aligned");
  return *pointer;
}

}  // namespace cuda_emulation

inline void __syncthreads() { cuda_emulation::wait_for_block(); }
inline void __syncwarp(unsigned mask = ~0u) {
  cuda_emulation::wait_for_warp(cuda_emulation::Wait::kSyncWarp, mask, 0, cuda_emulation::lane());
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize) {
  const int lane = cuda_emulation::lane();
  const int source = lane ^ bits;
  return cuda_emulation::shuffle(mask, value, source < (lane | (width - 1)) + 1 ? source : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int lane = cuda_emulation::lane();
  const int source = lane - static_cast<int>(delta);
  return cuda_emulation::shuffle(mask, value, source >= (lane & ~(width - 1)) ? source : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(cuda_emulation::wait_for_warp(
      cuda_emulation::Wait::kBallot, mask, predicate != 0, cuda_emulation::lane()));
}
// ---- memory -------------------------------------------------------------------------------------

template <typename T>
T __ldg(const T* pointer) {
  return cuda_emulation::aligned(pointer);
}
template <typename T>
T __ldcg(const T* pointer) {
  return cuda_emulation::aligned(pointer);
}
// Fibers are not interrupted, so that plain reads and writes are atomic and in order.
inline void __threadfence() {}
template <typename T, typename F>
T cuda_emulated_atomic(T* at, F change) {
  const T old = cuda_emulation::aligned(at);
  *at = change(old);
  return old;
}
template <typename T>
using CudaEmulatedSame = std::common_type_t<T>;  // no deduction from this argument
template <typename T>
T atomicAdd(T* at, CudaEmulatedSame<T> value) {
  return cuda_emulated_atomic(at, [&](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicExch(T* at, CudaEmulatedSame<T> value) {
  return cuda_emulated_atomic(at, [&](T) { return value; });
}
template <typename T>
T atomicCAS(T* at, CudaEmulatedSame<T> expected, CudaEmulatedSame<T> value) {
  return cuda_emulated_atomic(at, [&](T old) { return old == expected ? value : old; });
}

// ---- arithmetic ---------------------------------------------------------------------------------

inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
template <typename To, typename From>
To cuda_emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(unsigned x) { return cuda_emulated_bits<float>(x); }

template <typename T>
cudaError_t cudaMemcpyFromSymbolAsync(void* to, const T& symbol, size_t bytes, size_t offset,
                                      cudaMemcpyKind, cudaStream_t stream) {
  return cuda_emulation::put(stream, [to, from = &symbol, bytes, offset] {
    std::memcpy(to, reinterpret_cast<const char*>(from) + offset, bytes);
    return cudaSuccess;
  });
}

// ---- launches -----------------------------------------------------------------------------------

struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace cuda_emulation {
cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel,
                const std::function<void()>& thread);
const char* launch_failure();  // of this host thread
cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value);
}  // namespace cuda_emulation

template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Args&&... args) {
  std::tuple<std::decay_t<Args>...> given(std::forward<Args>(args)...);
  return cuda_emulation::put(config->stream, [launch = *config, kernel, given] {
    return cuda_emulation::run(launch, reinterpret_cast<const void*>(kernel),
                               [&] { std::apply(kernel, given); });
  });
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  return cuda_emulation::set_attribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}
