#include "triton/call_memory.h"

#include <cstring>
#include <utility>

namespace recengine::triton {

CallMemory::CallMemory(DeviceSlots* slots) : slots_(slots) {
  if (slots_ != nullptr) slot_ = slots_->take();
}

CallMemory::~CallMemory() {
  try {
    finish();
  } catch (...) {
    // Whoever waits for the device next is told.
    slots_->give_back(std::move(slot_));
  }
}

DeviceWork CallMemory::work() const {
  return slot_ == nullptr ? DeviceWork() : DeviceWork{slot_->stream(), slot_.get()};
}

void CallMemory::copy(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  if (slot_ == nullptr) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
  } else {
    copy_async(to, from, bytes, device(), slot_->stream());
  }
}

void CallMemory::copy_rows(void* to, int64_t row_bytes, const void* from, int64_t from_bytes,
                           int64_t rows) {
  if (row_bytes == from_bytes) {
    copy(to, from, rows * row_bytes);
  } else if (slot_ != nullptr) {
    copy_rows_async(to, row_bytes, from, from_bytes, rows, device(), slot_->stream());
  } else {
    for (int64_t row = 0; row < rows; ++row) {
      copy(static_cast<char*>(to) + row * row_bytes,
           static_cast<const char*>(from) + row * from_bytes, row_bytes);
    }
  }
}

void CallMemory::finish() {
  if (slot_ == nullptr) return;
  synchronize(device(), slot_->stream());
  slots_->give_back(std::move(slot_));
}

void* CallMemory::take_bytes(int64_t bytes) {
  if (slot_ != nullptr) return slot_->scratch().take(bytes);
  host_arrays_.emplace_back(new std::byte[static_cast<size_t>(bytes)]);
  return host_arrays_.back().get();
}

}  // namespace recengine::triton
