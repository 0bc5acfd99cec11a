// Guesses the threshold of each query from a sample of the blocks, so that about 2 K items reach
// it. Answers do not depend on guesses: see cosine_topk_cuda_answer.cu.
#include "ops/cosine_topk_sample.h"

namespace recengine::cuda {
namespace {

constexpr int kThreads = 256;

// Drops the groups of the sample that hold an excluded item, which may be their best.
__device__ void drop_excluded(const TopKPass& pass, int query) {
  if (pass.exclude_lengths == nullptr) return;
  uint64_t* const groups = pass.sample_keys + query * num_groups(pass);
  const RowRange range = exclusions_of(pass, pass.first + query);
  for (int64_t i = range.begin + threadIdx.x; i < range.end; i += kThreads) {
    const int64_t row = pass.exclude_rows.data[i];
    const int64_t block = row / kBlockItems;
    const int64_t sampled = block / pass.sample_stride;
    const bool in_sample = row >= 0 && sampled < pass.sampled_blocks &&
                           block % pass.sample_stride == pass.sample_stride / 2;
    if (in_sample) groups[sampled * kSampleGroups + row % kSampleGroups] = 0;
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads, 1) guess(TopKPass pass) {
  if (static_cast<int32_t>(blockIdx.x) >= pass.num_open[0]) return;
  const int query = pass.open[0][blockIdx.x];
  drop_excluded(pass, query);
  const float wanted = sampled_threshold(pass, query, /*factor=*/1);
  if (threadIdx.x == 0) pass.coded[query].wanted = wanted;
}

}  // namespace

void guess_thresholds(const TopKPass& pass, cudaStream_t stream) {
  scan_sample(pass, stream);
  launch(guess, static_cast<unsigned>(pass.count), kThreads, 0, stream, pass);
}

}  // namespace recengine::cuda
