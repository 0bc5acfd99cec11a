#include <algorithm>
#include <cstdint>

#include "cuda/launch.h"
#include "ops/vocabulary_slots.h"
#include "recengine/device_vocabulary.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = int64_t{1} << 20;

// A thread for an id: a probe is a miss, and many threads hide each other's.
__global__ void __launch_bounds__(kThreads)
    lookup_kernel(const VocabularyView view, const int64_t* ids, int64_t* rows, int64_t size) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < size; i += threads) {
    rows[i] = find_row(view, ids[i]);
  }
}

}  // namespace

DeviceVocabulary::DeviceVocabulary(const Vocabulary& vocabulary, int device)
    : view_(vocabulary),
      device_(device),
      slot_keys_(copy_resident(vocabulary.slot_keys().data, vocabulary.slot_keys().size, device)),
      slot_rows_(copy_resident(vocabulary.slot_rows().data, vocabulary.slot_rows().size, device)) {
  if (vocabulary.slot_keys().empty()) return;
  const int64_t capacity = vocabulary.slot_keys().size;
  view_ = Vocabulary::hashed({static_cast<const int64_t*>(slot_keys_.get()), capacity},
                             {static_cast<const int32_t*>(slot_rows_.get()), capacity},
                             vocabulary.size());
}

void DeviceVocabulary::lookup(CudaStream stream, Span<const int64_t> ids,
                              Span<int64_t> rows) const {
  if (ids.size != rows.size) {
    throw InputError("[vocabulary] rows: expected " + std::to_string(ids.size) + ", found " +
                     std::to_string(rows.size));
  }
  const cuda::DeviceGuard guard(device_);
  const VocabularyView view{view_.slot_keys().data, view_.slot_rows().data, view_.slot_keys().size,
                            view_.first(), view_.size()};
  const int64_t blocks = std::min((ids.size + kThreads - 1) / kThreads, kMaxBlocks);
  cuda::launch(lookup_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
               static_cast<cudaStream_t>(stream), view, ids.data, rows.data, ids.size);
}

}  // namespace recengine
