#pragma once

#include <memory>

#include "recengine/table.h"

namespace recengine {

// Embedding rows in the memory of a GPU; immutable, shared by all calls.
class DeviceTable {
 public:
  // A copy of rows on the host. Rows are padded to begin at multiples of 16 bytes, which is what
  // the kernels read at once, unless that would add more than a third.
  static DeviceTable copy(const EmbeddingTable& table, int device);

  // Rows that lie on the device already; whoever owns them outlives the table. Throws InputError
  // when data and scales are not on one device.
  static DeviceTable borrow(EmbeddingTable table);

  // The data and the scales are on the device.
  const EmbeddingTable& view() const { return view_; }
  int device() const { return device_; }

 private:
  EmbeddingTable view_;
  int device_ = 0;
  std::shared_ptr<void> data_;  // null when borrowed
  std::shared_ptr<void> scales_;
};

}  // namespace recengine
