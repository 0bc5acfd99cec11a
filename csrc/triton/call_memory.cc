#include "triton/call_memory.h"

#include <cstring>

namespace recengine::triton {

CallMemory::CallMemory(int device)
    : device_(device), stream_(device == kHost ? nullptr : thread_stream(device)) {}

CallMemory::~CallMemory() {
  try {
    finish();
  } catch (...) {
    // Whoever waits for the stream next is told.
  }
}

void CallMemory::copy(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  if (device_ == kHost) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
  } else {
    copy_async(to, from, bytes, device_, stream_);
  }
}

void CallMemory::copy_rows(void* to, int64_t row_bytes, const void* from, int64_t from_bytes,
                           int64_t rows) {
  if (row_bytes == from_bytes) {
    copy(to, from, rows * row_bytes);
  } else if (device_ != kHost) {
    copy_rows_async(to, row_bytes, from, from_bytes, rows, device_, stream_);
  } else {
    for (int64_t row = 0; row < rows; ++row) {
      copy(static_cast<char*>(to) + row * row_bytes,
           static_cast<const char*>(from) + row * from_bytes, row_bytes);
    }
  }
}

void CallMemory::finish() {
  if (device_ != kHost) synchronize(device_, stream_);
}

void* CallMemory::take_bytes(int64_t bytes) {
  if (device_ == kHost) {
    on_host_.emplace_back(new std::byte[static_cast<size_t>(bytes)]);
    return on_host_.back().get();
  }
  on_device_.push_back(allocate_on_device(bytes, device_, stream_));
  return on_device_.back().get();
}

}  // namespace recengine::triton
