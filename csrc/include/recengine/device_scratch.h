#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "recengine/cuda.h"
#include "recengine/error.h"

namespace recengine {

// Memory of a GPU for the calls on one stream, one call at a time: taken array by array and given
// back at once. It stays for the calls to come: one like another takes nothing from the device and
// finds its arrays at the same addresses.
class DeviceScratch {
 public:
  // Where the next array lies, if there is room.
  struct Position {
    size_t chunk = 0;
    int64_t offset = 0;
  };

  // With `bytes` to begin with.
  DeviceScratch(int device, int64_t bytes) : device_(device) {
    if (bytes > 0) add_chunk(bytes);
  }

  // Uninitialised, aligned to 256 bytes; null for none. Throws DeviceMemoryError.
  void* take(int64_t bytes) {
    if (bytes == 0) return nullptr;
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    while (next_.chunk < chunks_.size() && next_.offset + bytes > chunks_[next_.chunk].bytes) {
      next_ = {next_.chunk + 1, 0};
    }
    if (next_.chunk == chunks_.size()) grow(bytes);
    void* const memory = static_cast<char*>(chunks_[next_.chunk].memory.get()) + next_.offset;
    next_.offset += bytes;
    return memory;
  }

  Position position() const { return next_; }

  // Gives back what was taken after the position was read; the beginning gives back all.
  void go_back(Position position) { next_ = position; }

  // Whether it is of this memory.
  bool holds(const void* data) const {
    return std::any_of(chunks_.begin(), chunks_.end(), [data](const Chunk& chunk) {
      const auto* const begin = static_cast<const char*>(chunk.memory.get());
      return data >= begin && data < begin + chunk.bytes;
    });
  }

  int64_t bytes() const { return total_; }

  // Has at least so much, where the device has that. Call it while nothing is taken.
  void hold(int64_t bytes) {
    try {
      if (bytes > total_) add_chunk(bytes - total_);
    } catch (const DeviceMemoryError&) {
      // It grows when it must.
    }
  }

 private:
  struct Chunk {
    std::shared_ptr<void> memory;
    int64_t bytes;
  };

  static constexpr int64_t kAlignment = 256;
  static constexpr int64_t kLeastBytes = int64_t{1} << 20;

  // As much again as there is, so that this is seldom; no more than is needed on a full device.
  void grow(int64_t bytes) {
    const int64_t wanted = std::max({bytes, total_, kLeastBytes});
    try {
      add_chunk(wanted);
    } catch (const DeviceMemoryError&) {
      if (wanted == bytes) throw;
      add_chunk(bytes);
    }
  }

  void add_chunk(int64_t bytes) {
    chunks_.push_back({allocate_for_calls(bytes, device_), bytes});
    total_ += bytes;
  }

  int device_;
  std::vector<Chunk> chunks_;
  Position next_;
  int64_t total_ = 0;
};

}  // namespace recengine
