#pragma once

#include <cstdint>
#include <memory>

#include "recengine/item_index.h"

namespace recengine {

class ThreadPool;  // cpu/thread_pool.h
namespace cuda {
struct DeviceItems;  // ops/device_items.h
}

// The items of an ItemIndex in a GPU's memory: the unit vectors and, where the index has them, its
// 8-bit codes, 4 * dim + dim (rounded up to 32) bytes an item. Immutable and shared by all streams.
class DeviceItemIndex {
 public:
  // Returns when the copy is there. Throws DeviceError when the device is not, or lacks the memory.
  static DeviceItemIndex copy(const ItemIndex& index, int device, ThreadPool* pool = nullptr);

  int64_t rows() const { return rows_; }
  int64_t dim() const { return dim_; }
  int device() const { return device_; }
  const cuda::DeviceItems& items() const { return *items_; }

 private:
  int64_t rows_ = 0;
  int64_t dim_ = 0;
  int device_ = 0;
  std::shared_ptr<const cuda::DeviceItems> items_;
};

}  // namespace recengine
