#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "recengine/cuda.h"
#include "recengine/device_slot.h"
#include "recengine/engine.h"

namespace recengine::triton {

// The arrays of one engine call, in the memory that the engine computes in, and the copies to and
// from them. On a GPU that is a slot's memory, and all is done in the order of its stream.
class CallMemory {
 public:
  // On the GPU of the slots or, with null, the host. Throws DeviceError.
  explicit CallMemory(DeviceSlots* slots);
  ~CallMemory();  // where finish() was not called: nobody's memory is read any more
  CallMemory(const CallMemory&) = delete;
  CallMemory& operator=(const CallMemory&) = delete;

  int device() const { return slots_ == nullptr ? kHost : slots_->device(); }
  DeviceWork work() const;

  // Uninitialised.
  template <typename T>
  T* take(int64_t size) {
    return static_cast<T*>(take_bytes(size * int64_t{sizeof(T)}));
  }

  // Both ends may be anywhere; `from` must stay as it is until finish().
  void copy(void* to, const void* from, int64_t bytes);

  // Of each of some rows the first row_bytes, which go one after another.
  void copy_rows(void* to, int64_t row_bytes, const void* from, int64_t from_bytes, int64_t rows);

  // Returns when everything is done, and ends the use of this memory. Throws DeviceError when some
  // of it failed.
  void finish();

 private:
  void* take_bytes(int64_t bytes);

  DeviceSlots* slots_;
  std::unique_ptr<DeviceSlot> slot_;                       // on a GPU
  std::vector<std::unique_ptr<std::byte[]>> host_arrays_;  // else
};

}  // namespace recengine::triton
