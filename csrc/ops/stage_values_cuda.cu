#include <algorithm>
#include <cstdint>

#include "cuda/launch.h"
#include "ops/stage_values.h"
#include "recengine/vocabulary.h"

namespace recengine {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = int64_t{1} << 16;

// A thread for a value, or for several a grid apart.
template <typename... Params, typename... Args>
void launch_over(void (*kernel)(Params...), const CudaContext& context, int64_t size,
                 Args&&... args) {
  const cuda::DeviceGuard guard(context.device);
  const int64_t blocks = std::min((size + kThreads - 1) / kThreads, kMaxBlocks);
  cuda::launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
               static_cast<cudaStream_t>(context.stream), args...);
}

__device__ __forceinline__ int64_t first_value() {
  return int64_t{blockIdx.x} * kThreads + threadIdx.x;
}
__device__ __forceinline__ int64_t value_step() { return int64_t{gridDim.x} * kThreads; }

struct FinishCall {
  const int64_t* rows;
  const int64_t* keys;
  const int32_t* fallback;
  const int64_t* fallback_ids;
  const float* fallback_scores;
  int64_t* out_ids;
  float* out_scores;
  int64_t k;
  int64_t size;
};

__global__ void __launch_bounds__(kThreads) finish_topk_kernel(const FinishCall call) {
  for (int64_t i = first_value(); i < call.size; i += value_step()) {
    const int64_t user = i / call.k;
    const int32_t list = call.fallback[user];
    if (list >= 0) {
      const int64_t from = list * call.k + i - user * call.k;
      call.out_ids[i] = call.fallback_ids[from];
      call.out_scores[i] = call.fallback_scores[from];
    } else {
      const int64_t row = call.rows[i];
      call.out_ids[i] = row < 0 ? kNoItem : call.keys[row];
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    slot_scores_kernel(const int64_t* ids, const float* scores, float* out, int64_t size) {
  for (int64_t i = first_value(); i < size; i += value_step()) {
    out[i] = ids[i] == kNoItem ? 0.0f : scores[i];
  }
}

}  // namespace

void finish_topk_cuda(const CudaContext& context, const TopKAnswer& answer) {
  const int64_t size = answer.rows.rows * answer.rows.cols;
  const FinishCall call{answer.rows.data,
                        answer.keys.data,
                        answer.fallback.data,
                        answer.fallback_ids.data,
                        answer.fallback_scores.data,
                        answer.out_ids.data,
                        answer.out_scores.data,
                        answer.rows.cols,
                        size};
  launch_over(finish_topk_kernel, context, size, call);
}

void slot_scores_cuda(const CudaContext& context, Span<const int64_t> ids, Span<const float> scores,
                      Span<float> out) {
  launch_over(slot_scores_kernel, context, ids.size, ids.data, scores.data, out.data, ids.size);
}

}  // namespace recengine
