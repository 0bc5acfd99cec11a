#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "cuda/prefix_sum.h"
#include "cuda/value_check.h"
#include "ops/cosine_topk_check.h"
#include "ops/cosine_topk_kernel.h"
#include "ops/cosine_topk_pass.h"
#include "recengine/error.h"
#include "recengine/ops/cosine_topk.h"

namespace recengine {
namespace cuda {
namespace {

constexpr int64_t kQueriesPerPass = 512;      // bounds the workspace
constexpr int64_t kItemsPerWanted = 32;       // below, most items would be scored twice
constexpr int64_t kMostK = int64_t{1} << 29;  // what block_sort_descending() counts in int
constexpr int64_t kMostExcluded = (int64_t{1} << 31) - 1;

// Blocks of a sample: enough of a small index, and few of a large one.
constexpr int64_t kLeastSampled = 32;
constexpr int64_t kMostSampled = 1024;
constexpr int64_t kMostStride = 64;

// A guess lets about 2 K + 6 strides pass; lists hold twice that and more.
constexpr int64_t kCapacityPerWanted = 4;
constexpr int64_t kCapacityStrides = 16;
constexpr int64_t kLeastCapacity = 1024;

constexpr int64_t kWorkersPerMultiprocessor = 4;
constexpr int64_t kKeysBeyond = 4096;  // K that a worker has room for: it seldom looks through all

// Hands out the parts of a workspace; without one it counts their bytes.
class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<std::byte*>(memory)) {}

  template <typename T>
  T* take(int64_t count) {
    constexpr int64_t kAlignment = 256;
    const int64_t at = bytes_;
    bytes_ += (count * int64_t{sizeof(T)} + kAlignment - 1) / kAlignment * kAlignment;
    return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + at);
  }

  int64_t bytes() const { return bytes_; }

 private:
  std::byte* memory_;
  int64_t bytes_ = 0;
};

void plan_codes(TopKPass& pass, Workspace& memory) {
  const int64_t blocks = pass.items.blocks;
  pass.sample_stride = std::max(std::clamp<int64_t>(blocks / kLeastSampled, 1, kMostStride),
                                (blocks + kMostSampled - 1) / kMostSampled);
  const int64_t offset = pass.sample_stride / 2;
  pass.sampled_blocks = (blocks - offset + pass.sample_stride - 1) / pass.sample_stride;
  pass.capacity =
      std::min(kCapacityPerWanted * pass.k + kCapacityStrides * pass.sample_stride + kLeastCapacity,
               pass.items.rows);
  const int64_t count = pass.count;
  pass.codes = memory.take<int8_t>(count * pass.items.steps * kMmaBytes);
  pass.coded = memory.take<CodedQuery>(count);
  pass.sample_keys = memory.take<uint64_t>(count * pass.sampled_blocks * kSampleGroups);
  pass.survivors = memory.take<uint32_t>(count * pass.capacity);
  pass.keys = memory.take<uint64_t>(count * pass.capacity);
}

void plan_exact(TopKPass& pass, Workspace& memory) {
  pass.workers = static_cast<int32_t>(
      std::max<int64_t>(pass.count, kWorkersPerMultiprocessor * pass.multiprocessors));
  const int64_t least_parts = pass.workers / pass.count;
  const int64_t most_rows = (pass.items.rows + least_parts - 1) / least_parts;
  pass.worker_keys =
      std::min(std::max(most_rows, kLeastPartRows), pass.k + std::max(pass.k, kKeysBeyond));
  pass.best_keys = memory.take<uint64_t>(pass.workers * pass.worker_keys);
  pass.best_counts = memory.take<int32_t>(pass.workers);
  if (pass.k <= kMostSorted) return;
  for (pass.merged = 1; pass.merged < pass.k;) pass.merged *= 2;
  pass.merged_keys = memory.take<uint64_t>(pass.count * pass.merged);
}

// What all passes of a call have in common, and the memory that they work in.
TopKPass plan(const DeviceItems& items, int64_t batch, int64_t k, int64_t excluded,
              std::byte* workspace) {
  Workspace memory(workspace);
  TopKPass pass{};
  pass.items = items.view;
  pass.multiprocessors = items.multiprocessors;
  pass.has_wgmma = items.has_wgmma;
  pass.count = static_cast<int32_t>(std::min(batch, kQueriesPerPass));
  pass.k = k;
  pass.padded_dim =
      static_cast<int32_t>((pass.items.dim + kScoreLanes - 1) / kScoreLanes * kScoreLanes);
  pass.num_open = memory.take<int32_t>(kRounds + 1);
  pass.scored = memory.take<int64_t>(pass.count);
  pass.found = memory.take<int32_t>(pass.count);
  pass.zeroed_bytes = memory.bytes();
  pass.units = memory.take<float>(int64_t{pass.count} * pass.padded_dim);
  for (int32_t*& list : pass.open) list = memory.take<int32_t>(pass.count);
  pass.exclude_slots = memory.take<uint32_t>(2 * excluded);
  const bool has_codes = pass.items.codes != nullptr && k <= kMostSorted;
  if (has_codes && k <= pass.items.rows / kItemsPerWanted) plan_codes(pass, memory);
  plan_exact(pass, memory);
  pass.workspace_bytes = memory.bytes();
  return pass;
}

void run_pass(const TopKPass& pass, cudaStream_t stream) {
  RECENGINE_CUDA_CHECK(
      cudaMemsetAsync(pass.num_open, 0, static_cast<size_t>(pass.zeroed_bytes), stream));
  prepare_queries(pass, stream);
  if (uses_codes(pass)) {
    guess_thresholds(pass, stream);
    for (int round = 0; round < kRounds; ++round) {
      scan_codes(pass, round, stream);
      answer_round(pass, round, stream);
    }
  }
  score_all(pass, stream);
}

// On the host, where the message is made.
[[noreturn]] void fail_values(const CudaContext& context, const DeviceItemIndex& index,
                              const TopKQuery& query) {
  const std::vector<float> queries =
      host_copy(context, query.queries.data, query.queries.rows * query.queries.cols);
  const std::vector<int64_t> rows =
      host_copy(context, query.exclude_rows.data, query.exclude_rows.size);
  const std::vector<int32_t> lengths =
      host_copy(context, query.exclude_lengths.data, query.exclude_lengths.size);
  check_topk_values(index.rows(),
                    {{queries.data(), query.queries.rows, query.queries.cols}, rows, lengths});
  throw DeviceError("[cosine_topk] queries: changed while they were read");
}

void check_limits(const CudaContext& context, const DeviceItemIndex& index, int64_t k,
                  int64_t excluded) {
  if (context.device != index.device()) {
    throw InputError("[cosine_topk] index: expected on device " + std::to_string(context.device) +
                     ", found on " + std::to_string(index.device()));
  }
  if (k > kMostK) {
    throw InputError("[cosine_topk] k: expected at most " + std::to_string(kMostK) +
                     " on a GPU, found " + std::to_string(k));
  }
  if (excluded > kMostExcluded) {
    throw InputError("[cosine_topk] exclude_rows: expected at most " +
                     std::to_string(kMostExcluded) + " on a GPU, found " +
                     std::to_string(excluded));
  }
}

}  // namespace
}  // namespace cuda

void cosine_topk_cuda(const CudaContext& context, const DeviceItemIndex& index,
                      const TopKQuery& query, Matrix<int64_t> out_rows, Matrix<float> out_scores,
                      TopKCertificate* certificates) {
  check_topk_shapes(index.rows(), index.dim(), query, out_rows, out_scores);
  cuda::check_limits(context, index, out_rows.cols, query.exclude_rows.size);
  const int64_t batch = out_rows.rows;
  if (batch == 0 || out_rows.cols == 0) return;
  const cuda::DeviceGuard guard(context.device);
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const cuda::ValueCheck values("[cosine_topk]", context);
  cuda::TopKPass pass =
      cuda::plan(index.items(), batch, out_rows.cols, query.exclude_rows.size, nullptr);
  const cuda::DeviceBuffer<std::byte> memory(pass.workspace_bytes, context);
  pass = cuda::plan(index.items(), batch, out_rows.cols, query.exclude_rows.size, memory.data());
  pass.bad_value = values.found();
  pass.allow_bitmap = query.allow_bitmap.data;
  std::optional<cuda::DeviceBuffer<int64_t>> sums;
  if (!query.exclude_lengths.empty()) {
    sums.emplace(cuda::prefix_sums(context, query.exclude_lengths.data, batch));
    pass.exclude_rows = query.exclude_rows;
    pass.exclude_lengths = query.exclude_lengths.data;
    pass.exclude_sums = sums->data();
    cuda::make_exclusion_tables(pass, batch, stream);
  }
  const int64_t at_once = pass.count;
  for (pass.first = 0; pass.first < batch; pass.first += at_once) {
    pass.count = static_cast<int32_t>(std::min(at_once, batch - pass.first));
    pass.queries = query.queries.row(pass.first);
    pass.out_rows = out_rows.row(pass.first);
    pass.out_scores = out_scores.row(pass.first);
    pass.certificates = certificates == nullptr ? nullptr : certificates + pass.first;
    cuda::run_pass(pass, stream);
  }
  if (values.failed()) cuda::fail_values(context, index, query);
}

}  // namespace recengine
