#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda/device_buffer.h"
#include "cuda/stream.h"
#include "ops/hot_rows.h"
#include "recengine/device_table.h"
#include "recengine/table.h"
#include "recengine/tensor.h"

namespace recengine {

constexpr uint32_t kMaxSamples = 1 << 14;

// What one call reads of a cache.
struct RowCacheView {
  const RowMapEntry* map;  // null: no cache
  const char* rows;        // by slot
  RowCacheState* state;
  uint32_t entries;      // of the map
  int32_t map_idx;       // which of the two
  uint32_t seed;         // chooses the positions whose rows are sampled
  uint32_t sample_mask;  // bits of a position's hash that are 0 where it is
};

// A row that a call has read.
struct alignas(8) RowSample {
  uint32_t row;  // kEmptyEntry: not written yet
  uint32_t hit;  // 1 when it was read from its slot
};

// In device memory. Calls find there what is current when they run and say that they read it, so
// that neither streams nor a captured graph's replays need be known to the host.
struct RowCacheState {
  RowCacheView views[2];  // differ in the map
  int32_t current;        // the map that calls which begin take
  int32_t readers[2];     // calls that read a map
  uint32_t calls;
  uint32_t num_samples;  // also beyond kMaxSamples
  RowSample samples[kMaxSamples];
};

// Copies of the hot rows of a table in device memory. A slot gets another row in two steps: calls
// that begin take map 1, which has neither the old nor the new row, so that they read those from
// the host; once no call has map 0 the slot is written, map 0 names the new row and becomes current
// again. All functions may be called from many threads, also while calls run.
class RowCache {
 public:
  // `table` has at least one row, on the host and mapped; it outlives the cache.
  RowCache(const EmbeddingTable& table, uint32_t capacity, int device);
  ~RowCache();

  // Device memory for a row: its slot and its share of the maps.
  static int64_t slot_bytes(int64_t row_bytes);

  // For all of a cache.
  static int64_t device_bytes(uint32_t capacity, int64_t row_bytes);

  // For the kernels alone.
  RowCacheState* state() const { return static_cast<RowCacheState*>(state_.get()); }

  int64_t refresh();
  int64_t warm(Span<const uint32_t> rows);
  CacheStats stats() const;

 private:
  RowMapEntry* map(int index) const;
  cudaStream_t stream() const { return stream_.get(); }
  std::vector<RowSample> take_samples();
  void adapt_sampling(size_t samples);
  int64_t replace(const std::vector<RowMapEntry>& chosen);
  void publish(int map_idx);
  void wait_for_readers(int map_idx) const;
  void change(int map_idx, const std::vector<RowMap::Change>& changes);
  void copy_rows(const std::vector<RowMapEntry>& chosen);

  const char* host_rows_;
  int64_t row_bytes_;
  int device_;
  mutable std::mutex mutex_;  // over all that follows
  HotRows hot_;
  int sample_bits_ = 0;
  CacheStats stats_;
  cuda::Stream stream_;
  std::shared_ptr<void> maps_;
  std::shared_ptr<void> slots_;
  std::shared_ptr<void> work_;
  std::shared_ptr<void> state_;
};

// The views of the caches of a launch's columns, for as long as this lives and in the order of the
// stream.
class CacheReaders {
 public:
  // Null for a column without a cache.
  CacheReaders(const CudaContext& context, const std::vector<RowCacheState*>& states);
  ~CacheReaders();
  CacheReaders(const CacheReaders&) = delete;
  CacheReaders& operator=(const CacheReaders&) = delete;

  const RowCacheView* views() const { return views_.data(); }

 private:
  cuda::DeviceBuffer<RowCacheView> views_;
  cudaStream_t stream_;
};

}  // namespace recengine
