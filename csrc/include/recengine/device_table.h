#pragma once

#include <cstdint>
#include <memory>

#include "recengine/table.h"
#include "recengine/tensor.h"

namespace recengine {

class RowCache;

// What the cache of a spilled table does.
struct CacheStats {
  int64_t held = 0;          // rows in device memory, as many as fit
  int64_t refreshes = 0;     // until now
  int64_t samples = 0;       // rows read that the last refresh counted
  int64_t sampled_hits = 0;  // of these: found in device memory
};

// Embedding rows for a GPU; their values never change, and all calls share them.
class DeviceTable {
 public:
  // A copy of rows on the host. Rows are padded to begin at multiples of 16 bytes, which is what
  // the kernels read at once, unless that would add more than a third.
  static DeviceTable copy(const EmbeddingTable& table, int device);

  // Of the device's memory that copy() takes.
  static int64_t bytes_of_copy(const EmbeddingTable& table);

  // A copy of rows in pinned memory of the host, for tables larger than the device's memory. Calls
  // read them there, but for the hot ones, of which `cache_bytes` of device memory hold copies and
  // their share of a map: as many rows as fit, at first the first ones. Results are those of copy()
  // to the bit; a call launches two small kernels more. Besides, int8 scales and 192 KiB are in
  // device memory. Throws InputError for a negative `cache_bytes` and for 2^32 rows or more.
  static DeviceTable spill(const EmbeddingTable& table, int device, int64_t cache_bytes);

  // Rows that lie on the device already; whoever owns them outlives the table. Throws InputError
  // when data and scales are not on one device.
  static DeviceTable borrow(EmbeddingTable table);

  // Makes the rows that were read most the ones that are held, by a sample of what calls have read
  // since the last time; returns how many rows others have replaced. It copies those and waits for
  // calls that run, not for what waits on their streams: for whoever owns the table, every second
  // or so, from any thread, also while calls run and graphs are captured. What a captured graph
  // replays sees it, too. Nothing to do, and nothing done, where no row is spilled.
  int64_t refresh() const;

  // Holds these rows, the first ones where not all fit, and counts anew: for rows that are known to
  // be hot before the first call. Returns and costs what refresh() does. Throws InputError for a
  // row outside the table.
  int64_t warm(Span<const int64_t> rows) const;

  CacheStats stats() const;

  // The device reads the data and the scales.
  const EmbeddingTable& view() const { return view_; }
  int device() const { return device_; }

  // Of the device's memory that was taken for it.
  int64_t device_bytes() const { return device_bytes_; }

 private:
  EmbeddingTable view_;
  int device_ = 0;
  int64_t device_bytes_ = 0;
  std::shared_ptr<void> data_;  // null when borrowed
  std::shared_ptr<void> scales_;
  std::shared_ptr<RowCache> cache_;  // null where no row is spilled, or none is held
  int64_t held_ = 0;                 // without a cache
};

}  // namespace recengine
