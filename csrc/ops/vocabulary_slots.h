#pragma once

#include <cstdint>

#include "cuda/host_device.h"

namespace recengine {

constexpr int32_t kEmptySlot = -1;

// The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): consecutive ids spread evenly.
RECENGINE_HOST_DEVICE inline uint64_t mix(int64_t key) {
  uint64_t x = static_cast<uint64_t>(key);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Maps a hash to [0, capacity) by its high bits, without a division.
RECENGINE_HOST_DEVICE inline int64_t home_slot(int64_t key, int64_t capacity) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<int64_t>((Wide{mix(key)} * static_cast<uint64_t>(capacity)) >> 64);
}

// What a lookup reads: slots, or a range of ids when there are none.
struct VocabularyView {
  const int64_t* slot_keys;
  const int32_t* slot_rows;
  int64_t capacity;
  int64_t first;
  int64_t count;
};

// The table row of an id; 0 when unknown.
RECENGINE_HOST_DEVICE inline int64_t find_row(const VocabularyView& view, int64_t id) {
  if (view.capacity == 0) {
    const uint64_t offset = static_cast<uint64_t>(id) - static_cast<uint64_t>(view.first);
    return offset < static_cast<uint64_t>(view.count) ? static_cast<int64_t>(offset) + 1 : 0;
  }
  int64_t slot = home_slot(id, view.capacity);
  // A damaged table may have no empty slot: give up after one round.
  for (int64_t probe = 0; probe < view.capacity; ++probe) {
    if (view.slot_rows[slot] == kEmptySlot) return 0;
    if (view.slot_keys[slot] == id) return view.slot_rows[slot];
    slot = slot + 1 == view.capacity ? 0 : slot + 1;
  }
  return 0;
}

}  // namespace recengine
