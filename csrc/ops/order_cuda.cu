#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda/block_sort.h"
#include "cuda/device_buffer.h"
#include "cuda/launch.h"
#include "cuda/value_check.h"
#include "ops/order_check.h"
#include "ops/sort_key.h"
#include "ops/stage_values.h"
#include "recengine/error.h"
#include "recengine/ops/order.h"
#include "recengine/vocabulary.h"

namespace recengine {
namespace {

constexpr int kMaxThreads = 512;
constexpr int kMinKeys = 64;
constexpr int kSharedKeys = 8192;     // 64 KiB of shared memory; where K needs more, global memory
constexpr int kMostKeys = 1 << 29;    // what block_sort_descending() counts in int
constexpr int64_t kMostBlocks = 512;  // with keys in global memory,
constexpr int64_t kMostKeysOfAll = 1 << 25;  // and of all of them, where one needs fewer
constexpr uint64_t kNoCandidate = 0;         // below the key of every finite score

struct OrderCall {
  const int64_t* candidate_ids;  // [batch, n]
  const float* scores;           // [batch, n]
  int64_t n;
  int64_t batch;
  int64_t* out_ids;   // [batch, k]
  float* out_scores;  // [batch, k]
  int64_t k;
  int* bad_value;            // set when a score is not finite, or null
  const uint8_t* known;      // [batch], or null: `own` counts where it is 0
  const float* own;          // [batch, n], with `known`
  int* bad_own;              // set when one of these is not finite
  int num_keys = 0;          // a power of two
  uint64_t* keys = nullptr;  // [blocks, num_keys], or null: in shared memory
};

__device__ const float* scores_of(const OrderCall& call, int64_t row) {
  const bool own = call.known != nullptr && call.known[row] == 0;
  return (own ? call.own : call.scores) + row * call.n;
}

__device__ uint64_t candidate_key(const OrderCall& call, int64_t row, int64_t col) {
  const int64_t at = row * call.n + col;
  if (call.candidate_ids[at] == kNoItem) return kNoCandidate;
  if (call.own != nullptr && !isfinite(call.own[at])) *call.bad_own = 1;
  const float score = scores_of(call, row)[col];
  if (isfinite(score)) return sort_key(score, static_cast<uint32_t>(col));
  if (call.bad_value != nullptr) *call.bad_value = 1;
  return kNoCandidate;
}

// A block for a row at a time; of more candidates than keys in parts, whose best half stays. Two
// blocks at a time leave the registers that ptxas would spill on sm_100.
template <bool kShared>
__global__ void __launch_bounds__(kMaxThreads, 2) order_kernel(const OrderCall call) {
  uint64_t* const keys =
      kShared ? cuda::dynamic_shared<uint64_t>() : call.keys + int64_t{blockIdx.x} * call.num_keys;
  const auto thread = static_cast<int>(threadIdx.x);
  const auto num_threads = static_cast<int>(blockDim.x);
  for (int64_t row = blockIdx.x; row < call.batch; row += gridDim.x) {
    int64_t taken = 0;
    for (int kept = 0; taken < call.n || kept == 0; kept = call.num_keys / 2) {
      for (int i = kept + thread; i < call.num_keys; i += num_threads) {
        const int64_t col = taken + i - kept;
        keys[i] = col < call.n ? candidate_key(call, row, col) : kNoCandidate;
      }
      taken += call.num_keys - kept;
      cuda::block_sort_descending(keys, call.num_keys);
    }
    for (int64_t i = thread; i < call.k; i += num_threads) {
      const uint64_t key = i < call.num_keys ? keys[i] : kNoCandidate;
      const int64_t col = key_position(key);
      const bool found = key != kNoCandidate;
      call.out_ids[row * call.k + i] = found ? call.candidate_ids[row * call.n + col] : kNoItem;
      call.out_scores[row * call.k + i] = found ? scores_of(call, row)[col] : -INFINITY;
    }
    __syncthreads();
  }
}

// All candidates, or twice K of them at a time.
int keys_for(int64_t n, int64_t k) {
  const int64_t wanted = std::min(n, std::max<int64_t>(kSharedKeys, 2 * k));
  if (wanted > kMostKeys) {
    throw InputError("[order] k: expected at most " + std::to_string(kMostKeys / 2) +
                     " on a GPU, found " + std::to_string(k));
  }
  int keys = kMinKeys;
  while (keys < wanted) keys *= 2;
  return keys;
}

void sort_in_shared_memory(const OrderCall& call, cudaStream_t stream) {
  const size_t bytes = static_cast<size_t>(call.num_keys) * sizeof(uint64_t);
  if (bytes > cuda::kSharedBytes) cuda::allow_shared(order_kernel<true>, bytes);
  const dim3 threads(static_cast<unsigned>(std::min(call.num_keys / 2, kMaxThreads)));
  const dim3 blocks(static_cast<unsigned>(std::min<int64_t>(call.batch, INT32_MAX)));
  cuda::launch(order_kernel<true>, blocks, threads, bytes, stream, call);
}

void sort_in_global_memory(OrderCall call, const CudaContext& context) {
  const int64_t fit = std::max<int64_t>(kMostKeysOfAll / call.num_keys, 1);
  const int64_t blocks = std::min({call.batch, kMostBlocks, fit});
  const cuda::DeviceBuffer<uint64_t> keys(blocks * call.num_keys, context);
  call.keys = keys.data();
  cuda::launch(order_kernel<false>, static_cast<unsigned>(blocks), kMaxThreads, 0,
               static_cast<cudaStream_t>(context.stream), call);
}

void sort(OrderCall call, const CudaContext& context) {
  call.num_keys = keys_for(call.n, call.k);
  if (call.num_keys <= kSharedKeys) {
    sort_in_shared_memory(call, static_cast<cudaStream_t>(context.stream));
  } else {
    sort_in_global_memory(call, context);
  }
}

void check_columns(int64_t n) {
  if (n <= INT32_MAX) return;
  throw InputError("[order] scores: expected at most 2147483647 columns, found " +
                   std::to_string(n));
}

// On the host, where the message is made.
[[noreturn]] void fail_scores(const CudaContext& context, Matrix<const int64_t> candidate_ids,
                              Matrix<const float> scores) {
  const int64_t size = scores.rows * scores.cols;
  const std::vector<int64_t> ids = host_copy(context, candidate_ids.data, size);
  const std::vector<float> values = host_copy(context, scores.data, size);
  check_order_scores({ids.data(), scores.rows, scores.cols},
                     {values.data(), scores.rows, scores.cols});
  throw DeviceError("[order] scores: changed while they were read");
}

}  // namespace

void order_cuda(const CudaContext& context, Matrix<const int64_t> candidate_ids,
                Matrix<const float> scores, Matrix<int64_t> out_ids, Matrix<float> out_scores) {
  check_order_shapes(candidate_ids, scores, out_ids, out_scores);
  check_columns(scores.cols);
  const cuda::DeviceGuard guard(context.device);
  const cuda::ValueCheck values("[order]", context);
  sort({candidate_ids.data, scores.data, scores.cols, scores.rows, out_ids.data, out_scores.data,
        out_ids.cols, values.found(), nullptr, nullptr, nullptr},
       context);
  if (values.failed()) fail_scores(context, candidate_ids, scores);
}

void order_candidates_cuda(const CudaContext& context, const RankedCandidates& candidates,
                           Matrix<int64_t> out_ids, Matrix<float> out_scores) {
  check_columns(candidates.ids.cols);
  const cuda::DeviceGuard guard(context.device);
  sort({candidates.ids.data, candidates.graph, candidates.ids.cols, candidates.ids.rows,
        out_ids.data, out_scores.data, out_ids.cols, candidates.not_finite + 1,
        candidates.known.data, candidates.own.data, candidates.not_finite},
       context);
}

}  // namespace recengine
