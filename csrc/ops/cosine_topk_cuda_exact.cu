// Scores all items, for what codes cannot answer: no codes, a large K, or queries that stayed open.
// The workers share the open queries out among them; each keeps the best of its part of the rows.
#include "ops/cosine_topk_select.h"

namespace recengine::cuda {
namespace {

constexpr int kThreads = 256;
static_assert(kLeastPartRows == kThreads, "a worker scores at least a row a thread");
constexpr int kRowsAtOnce = kThreads / static_cast<int>(kScoreLanes);
constexpr int kMergeThreads = 512;

// Which rows of which query a worker scores.
struct Part {
  int slot;  // in the list of open queries
  int64_t begin;
  int64_t end;
};

__device__ int parts_of_query(const TopKPass& pass, int open) {
  const int64_t worth = (pass.items.rows + kLeastPartRows - 1) / kLeastPartRows;
  return static_cast<int>(max(int64_t{1}, min(int64_t{pass.workers / open}, worth)));
}

__device__ Part part_of(const TopKPass& pass, int worker, int open) {
  const int parts = parts_of_query(pass, open);
  const int64_t rows = (pass.items.rows + parts - 1) / parts;
  const int64_t begin = min(worker % parts * rows, pass.items.rows);
  return {worker / parts, begin, min(begin + rows, pass.items.rows)};
}

// By all threads of the block: leaves the best K of a worker's keys, of which there are more, and
// returns what others must exceed. `count` is in shared memory.
__device__ uint64_t keep_best(const TopKPass& pass, uint64_t* keys, int32_t* count) {
  const uint64_t least = select_rank({keys, 0, count, 1}, pass.k);
  __shared__ int32_t kept;
  if (threadIdx.x == 0) kept = 0;
  const int32_t before = *count;
  for (int first = 0; first < before; first += kThreads) {
    const int own = first + static_cast<int>(threadIdx.x);
    const uint64_t key = own < before ? keys[own] : 0;
    __syncthreads();  // a turn writes only where all have read
    if (key >= least) keys[atomicAdd(&kept, 1)] = key;
  }
  __syncthreads();
  if (threadIdx.x == 0) *count = kept;
  __syncthreads();
  return least - 1;
}

__global__ void __launch_bounds__(kThreads) score_part(TopKPass pass) {
  const auto worker = static_cast<int>(blockIdx.x);
  const int open = pass.num_open[kRounds];
  if (open == 0) return;
  const Part part = part_of(pass, worker, open);
  if (part.slot >= open) return;
  const int query = pass.open[kRounds][part.slot];
  const float* const unit = pass.units + int64_t{query} * pass.padded_dim;
  uint64_t* const keys = pass.best_keys + worker * pass.worker_keys;
  uint64_t threshold = 0;  // what is not above it cannot be among the best
  __shared__ int32_t count;
  if (threadIdx.x == 0) count = 0;
  for (int64_t first = part.begin;; first += kThreads) {
    __syncthreads();
    const int32_t before = count;
    __syncthreads();
    const bool ended = first >= part.end;
    if ((ended || before + kThreads > pass.worker_keys) && before > pass.k) {
      threshold = keep_best(pass, keys, &count);
    }
    if (ended) break;
    for (int turn = 0; turn < kThreads; turn += kRowsAtOnce) {
      const int64_t wanted = first + turn + threadIdx.x / kScoreLanes;
      const int64_t row = min(wanted, pass.items.rows - 1);
      const float value = score_row(pass.items.units + row * pass.items.dim, unit, pass.items.dim);
      if (threadIdx.x % kScoreLanes != 0 || wanted >= part.end) continue;
      const uint64_t key = sort_key(value, static_cast<uint32_t>(row));
      if (key <= threshold || !is_allowed(pass, row)) continue;
      if (is_excluded(pass, query, static_cast<uint32_t>(row))) continue;
      keys[atomicAdd(&count, 1)] = key;
    }
  }
  if (threadIdx.x == 0) pass.best_counts[worker] = count;
}

__global__ void __launch_bounds__(kMergeThreads) merge_parts(TopKPass pass) {
  const auto slot = static_cast<int>(blockIdx.x);
  const int open = pass.num_open[kRounds];
  if (slot >= open) return;
  const int query = pass.open[kRounds][slot];
  const int parts = parts_of_query(pass, open);
  const int64_t first = int64_t{slot} * parts;
  const KeyRuns keys = {pass.best_keys + first * pass.worker_keys, pass.worker_keys,
                        pass.best_counts + first, parts};
  const int64_t total = count_keys(keys, [](uint64_t) { return true; });
  uint64_t* const sorted =
      pass.k > kMostSorted ? pass.merged_keys + query * pass.merged : dynamic_shared<uint64_t>();
  const uint64_t last = write_answer(pass, query, keys, total, sorted);
  certify(pass, query, last, 0, pass.items.rows, pass.scored[query] + pass.items.rows);
}

}  // namespace

void score_all(const TopKPass& pass, cudaStream_t stream) {
  launch(score_part, static_cast<unsigned>(pass.workers), kThreads, 0, stream, pass);
  launch(merge_parts, static_cast<unsigned>(pass.count), kMergeThreads,
         static_cast<size_t>(kMostSorted) * sizeof(uint64_t), stream, pass);
}

}  // namespace recengine::cuda
