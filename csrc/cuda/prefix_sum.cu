#include <cstdint>

#include "cuda/launch.h"
#include "cuda/prefix_sum.h"
#include "cuda/warp.h"
#include "recengine/error.h"

namespace recengine::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;
constexpr int kPerThread = 8;
constexpr int64_t kTile = kThreads * kPerThread;

__device__ int64_t value_at(const int32_t* values, int64_t i, int64_t size) {
  return i < size && values[i] > 0 ? values[i] : 0;
}

// The sum over all threads of the block, which they all get.
__device__ int64_t block_sum(int64_t value, int64_t* warps) {
  value = warp_sum(value);
  if (threadIdx.x % kWarpLanes == 0) warps[threadIdx.x / kWarpLanes] = value;
  __syncthreads();
  int64_t sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += warps[w];
  __syncthreads();
  return sum;
}

// Block b sums tile b.
__global__ void __launch_bounds__(kThreads)
    sum_tiles(const int32_t* values, int64_t size, int64_t* tiles) {
  __shared__ int64_t warps[kWarps];
  const int64_t begin = blockIdx.x * kTile;
  int64_t sum = 0;
  for (int i = 0; i < kPerThread; ++i) {
    sum += value_at(values, begin + i * kThreads + threadIdx.x, size);
  }
  sum = block_sum(sum, warps);
  if (threadIdx.x == 0) tiles[blockIdx.x] = sum;
}

// Block b adds up the tiles before its own and writes the sums of its own.
__global__ void __launch_bounds__(kThreads)
    write_sums(const int32_t* values, int64_t size, const int64_t* tiles, int64_t* sums) {
  __shared__ int64_t warps[kWarps];
  int64_t before = 0;
  for (int64_t t = threadIdx.x; t < blockIdx.x; t += kThreads) before += tiles[t];
  before = block_sum(before, warps);

  const int64_t begin = blockIdx.x * kTile + threadIdx.x * kPerThread;
  int64_t own = 0;
  for (int i = 0; i < kPerThread; ++i) own += value_at(values, begin + i, size);
  const int64_t through = warp_inclusive_sum(own);
  const int warp = threadIdx.x / kWarpLanes;
  if (threadIdx.x % kWarpLanes == kWarpLanes - 1) warps[warp] = through;
  __syncthreads();
  int64_t sum = before + through - own;
  for (int w = 0; w < warp; ++w) sum += warps[w];
  for (int64_t i = begin; i < begin + kPerThread && i < size; ++i) {
    sums[i] = sum;
    sum += value_at(values, i, size);
  }
}

}  // namespace

DeviceBuffer<int64_t> prefix_sums(const CudaContext& context, const int32_t* values, int64_t size) {
  const int64_t num_tiles = (size + kTile - 1) / kTile;
  if (num_tiles > INT32_MAX) throw InputError("[cuda] more values than a prefix sum takes");
  DeviceBuffer<int64_t> sums(size, context);
  const DeviceBuffer<int64_t> tiles(num_tiles, context);
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const dim3 blocks(static_cast<unsigned>(num_tiles));
  launch(sum_tiles, blocks, dim3(kThreads), 0, stream, values, size, tiles.data());
  launch(write_sums, blocks, dim3(kThreads), 0, stream, values, size, tiles.data(), sums.data());
  return sums;
}

}  // namespace recengine::cuda
