// The excluded rows of each query as a hash table in global memory, twice as large as its list:
// whether a row is excluded is then one read or two, wherever a kernel asks.
#include "ops/cosine_topk_device.h"

namespace recengine::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) insert_rows(TopKPass pass, int64_t batch) {
  const int64_t query = blockIdx.x;
  const RowRange range = exclusions_of(pass, query);
  const bool cut = range.end - range.begin != pass.exclude_lengths[query];
  const bool rows_left = query == batch - 1 && range.end != pass.exclude_rows.size;
  if (pass.bad_value != nullptr && (cut || rows_left)) *pass.bad_value = 1;
  const auto size = static_cast<uint32_t>(2 * (range.end - range.begin));
  uint32_t* const slots = pass.exclude_slots + 2 * range.begin;
  for (int64_t i = range.begin + threadIdx.x; i < range.end; i += kThreads) {
    const int64_t row = pass.exclude_rows.data[i];
    if (row < 0 || row >= pass.items.rows) {
      if (pass.bad_value != nullptr) *pass.bad_value = 1;
      continue;
    }
    const auto value = static_cast<uint32_t>(row);
    uint32_t slot = exclusion_slot(value, size);
    for (;;) {
      const uint32_t found = atomicCAS(slots + slot, kNoRow, value);
      if (found == kNoRow || found == value) break;
      slot = slot + 1 == size ? 0 : slot + 1;
    }
  }
}

}  // namespace

void make_exclusion_tables(const TopKPass& pass, int64_t batch, cudaStream_t stream) {
  const auto bytes = static_cast<size_t>(2 * pass.exclude_rows.size) * sizeof(uint32_t);
  if (bytes > 0) RECENGINE_CUDA_CHECK(cudaMemsetAsync(pass.exclude_slots, 0xff, bytes, stream));
  launch(insert_rows, static_cast<unsigned>(batch), kThreads, 0, stream, pass, batch);
}

}  // namespace recengine::cuda
