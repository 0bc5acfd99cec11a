// What the emulation must report, run by tools/cuda_emulated.sh: an emulation that overlooks a
// fault would let the tests of the kernels pass.

#include <cstdio>
#include <cstring>

#include "cuda_runtime.h"

namespace {

constexpr unsigned kAll = ~0u;
bool failed = false;

void expect(bool right, const char* what) {
  if (right) return;
  std::printf("emulation_test: %s\n", what);
  failed = true;
}

template <typename... Args>
cudaError_t run(unsigned threads, size_t shared, void (*kernel)(Args...), Args... args) {
  cudaLaunchConfig_t config;
  config.gridDim = dim3(3);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

template <typename... Args>
void expect_failure(const char* message, void (*kernel)(Args...), Args... args) {
  expect(run(64, 0, kernel, args...) == cudaErrorLaunchFailure, message);
  expect(std::strstr(cudaGetErrorString(cudaErrorLaunchFailure), message) != nullptr, message);
}

__global__ void sum_of_threads(int* sum) {
  __shared__ int of_warps[2];
  int value = static_cast<int>(threadIdx.x);
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAll, value, distance);
  }
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(sum, of_warps[0] + of_warps[1]);
}

__global__ void one_waits_elsewhere() {
  if (threadIdx.x == 3) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}
__global__ void one_has_left() {
  if (threadIdx.x != 3) __syncwarp();
}
__global__ void outside_its_mask() { __ballot_sync(1u, 1); }
__global__ void from_a_lane_outside() {
  if (threadIdx.x < 2) __shfl_xor_sync(3u, 1, 2);
}
__global__ void unaligned(const char* data) { __ldg(reinterpret_cast<const float4*>(data + 4)); }
__global__ void nothing() {}

}  // namespace

int main() {
  void* sum = nullptr;
  expect(cudaMalloc(&sum, 64) == cudaSuccess, "cudaMalloc");
  expect(cudaMemsetAsync(sum, 0, 64, nullptr) == cudaSuccess, "cudaMemsetAsync");
  expect(run(64, 0, sum_of_threads, static_cast<int*>(sum)) == cudaSuccess, "a sum");
  int found = 0;
  expect(cudaMemcpy(&found, sum, 4, cudaMemcpyDeviceToHost) == cudaSuccess, "cudaMemcpy");
  expect(found == 3 * 63 * 64 / 2, "the sum over three blocks");

  expect_failure("waits for ever at __syncthreads", one_waits_elsewhere);
  expect_failure("waits for ever at __syncwarp", one_has_left);
  expect_failure("not in the mask of its own warp primitive", outside_its_mask);
  expect_failure("from a lane that is not in its mask", from_a_lane_outside);
  expect_failure("not aligned", unaligned, static_cast<const char*>(sum));
  expect(run(2048, 0, nothing) == cudaErrorInvalidConfiguration, "2048 threads");
  expect(run(32, 64 << 10, nothing) == cudaErrorInvalidConfiguration, "64 KiB not asked for");
  expect(run(64, 0, nothing) == cudaSuccess, "a launch after failures");

  expect(cudaMemcpy(&found, &found, 4, cudaMemcpyHostToDevice) != cudaSuccess, "host for device");
  expect(cudaMemcpy(sum, &found, 4, cudaMemcpyDeviceToDevice) != cudaSuccess, "host on the device");
  expect(cudaMemcpy(&found, sum, 65, cudaMemcpyDeviceToHost) != cudaSuccess, "a copy too long");
  expect(cudaFree(sum) == cudaSuccess && cudaFree(sum) != cudaSuccess, "a second cudaFree");
  return failed ? 1 : 0;
}
