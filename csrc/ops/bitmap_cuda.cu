#include "cuda/launch.h"
#include "ops/bitmap.h"
#include "recengine/error.h"
#include "recengine/ops/cosine_topk.h"

namespace recengine {
namespace {

constexpr int kThreads = 256;

// A thread a row; a warp writes half a word, the lower one first.
__global__ void __launch_bounds__(kThreads)
    pack_mask(Span<const uint8_t> mask, Span<uint64_t> words) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const bool set = row < mask.size && mask.data[row] != 0;
  const unsigned half = __ballot_sync(cuda::kAllLanes, set);
  if (threadIdx.x % cuda::kWarpLanes != 0 || row >= words.size * kBitmapWord) return;
  reinterpret_cast<uint32_t*>(words.data)[row / cuda::kWarpLanes] = half;
}

}  // namespace

void pack_bitmap_cuda(const CudaContext& context, Span<const uint8_t> mask, Span<uint64_t> words) {
  if (words.size != bitmap_words(mask.size)) {
    throw InputError("[cosine_topk] allow: expected " + std::to_string(bitmap_words(mask.size)) +
                     " words, found " + std::to_string(words.size));
  }
  const cuda::DeviceGuard guard(context.device);
  const int64_t blocks = (words.size * kBitmapWord + kThreads - 1) / kThreads;
  cuda::launch(pack_mask, static_cast<unsigned>(blocks), kThreads, 0,
               static_cast<cudaStream_t>(context.stream), mask, words);
}

}  // namespace recengine
