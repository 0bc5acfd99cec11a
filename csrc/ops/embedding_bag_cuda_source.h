#pragma once

// Where the rows of a column are.

#include <cstdint>

#include "cuda/launch.h"
#include "ops/embedding_bag_cuda_kernel.h"
#include "ops/embedding_bag_cuda_units.h"
#include "ops/row_cache.h"

namespace recengine {

// `kCached`: a column may have a cache, where a row is looked for first. All lanes of a row read
// the same. In three steps, so that first the map entries of several rows are on their way at once,
// and then those rows.
template <bool kCached>
struct Source {
  struct Probe {};
  struct Found {};

  __device__ __forceinline__ Source(const BagCall&, int) {}
  __device__ __forceinline__ Probe probe(const Column&, int64_t) const { return {}; }
  __device__ __forceinline__ Found find(const Column&, int64_t, Probe, int64_t, bool) const {
    return {};
  }
  // Of a row of the table.
  __device__ __forceinline__ const char* row(const Column& column, int64_t id, Found) const {
    return column.data + id * column.row_bytes;
  }
};

template <>
struct Source<true> {
  using Probe = uint2;  // row and slot of the first map entry
  using Found = const char*;

  const RowCacheView view;  // by value: stores cannot change it, so that it stays in registers

  // `c` is the column's place in the launch.
  __device__ __forceinline__ Source(const BagCall& call, int c) : view(call.caches[c]) {}

  __device__ __forceinline__ Probe load(uint32_t at) const {
    return __ldg(reinterpret_cast<const uint2*>(view.map) + at);
  }

  __device__ __forceinline__ Probe probe(const Column& column, int64_t id) const {
    if (view.map == nullptr || !in_table(column, id)) return make_uint2(kEmptyEntry, 0);
    return load(home_entry(static_cast<uint32_t>(id), view.entries));
  }

  // `first`: by the lane of a row that is to note it.
  __device__ __forceinline__ Found find(const Column& column, int64_t id, Probe entry,
                                        int64_t position, bool first) const {
    if (!in_table(column, id)) return nullptr;
    const auto row = static_cast<uint32_t>(id);
    if (entry.x != row && entry.x != kEmptyEntry) {
      uint32_t at = home_entry(row, view.entries);
      do {
        at = next_entry(at, view.entries);
        entry = load(at);
      } while (entry.x != row && entry.x != kEmptyEntry);
    }
    const bool held = entry.x != kEmptyEntry;
    if (first && view.map != nullptr) sample(row, held, position);
    return (held ? view.rows : column.data) + (held ? entry.y : id) * column.row_bytes;
  }

  __device__ __forceinline__ const char* row(const Column&, int64_t, Found found) const {
    return found;
  }

  // Notes some of the rows that are read, for RowCache::refresh().
  __device__ __forceinline__ void sample(uint32_t row, bool held, int64_t position) const {
    const uint32_t hash = (static_cast<uint32_t>(position) + view.seed) * 2654435769u;
    if ((hash & view.sample_mask) != 0) return;
    RowCacheState& state = *view.state;
    if (__ldcg(&state.num_samples) >= kMaxSamples) return;
    const uint32_t at = atomicAdd(&state.num_samples, 1u);
    if (at < kMaxSamples) state.samples[at] = {row, held ? 1u : 0u};
  }
};

}  // namespace recengine
