#pragma once

#include <cuda_runtime.h>

#include "cuda/check.h"

namespace recengine::cuda {

constexpr unsigned kAllLanes = ~0u;
constexpr int kWarpLanes = 32;
constexpr size_t kSharedBytes = 48 << 10;  // dynamic shared memory that a kernel has by default

// Runs a kernel on the caller's stream; an empty grid is no work. Sources launch with this and not
// with <<<>>>, so that a C++ compiler can read them (tests/cuda_emulation).
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), "launch of a kernel");
}

// The shared memory that the launch asked for, aligned to 16 bytes.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef RECENGINE_CUDA_EMULATED
  return static_cast<T*>(cuda_emulation::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char recengine_dynamic_shared[];
  return reinterpret_cast<T*>(recengine_dynamic_shared);
#endif
}

// Lets a kernel have more than kSharedBytes on the current device.
template <typename... Params>
void allow_shared(void (*kernel)(Params...), size_t bytes) {
  RECENGINE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(bytes)));
}

// Makes a device the current one for as long as this lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    RECENGINE_CUDA_CHECK(cudaGetDevice(&before_));
    if (device != before_) RECENGINE_CUDA_CHECK(cudaSetDevice(device));
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace recengine::cuda
