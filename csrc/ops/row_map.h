#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/host_device.h"

namespace recengine {

// Says that a row is in a slot of a cache; a kernel reads it at once.
struct alignas(8) RowMapEntry {
  uint32_t row;  // kEmptyEntry: none
  uint32_t slot;
};

constexpr uint32_t kEmptyEntry = UINT32_MAX;

// Where to look for a row first: Fibonacci hashing (Knuth, TAOCP 3, 6.4), mapped to [0, entries) by
// its high bits, without a division.
RECENGINE_HOST_DEVICE inline uint32_t home_entry(uint32_t row, uint32_t entries) {
  return static_cast<uint32_t>(uint64_t{row * 2654435769u} * entries >> 32);
}

RECENGINE_HOST_DEVICE inline uint32_t next_entry(uint32_t at, uint32_t entries) {
  return at + 1 == entries ? 0 : at + 1;
}

// Row -> slot by linear probing, half full at most; on the host, with a record of what changes.
class RowMap {
 public:
  struct Change {
    uint32_t at;
    RowMapEntry entry;
  };

  explicit RowMap(uint32_t capacity)
      : entries_(2 * std::size_t{capacity}, RowMapEntry{kEmptyEntry, 0}) {}

  // Null when the row is in no slot.
  const RowMapEntry* find(uint32_t row) const;
  // One that is not in it yet.
  void insert(RowMapEntry entry);
  // One that is in it.
  void erase(uint32_t row);

  const std::vector<RowMapEntry>& entries() const { return entries_; }
  // Since the last call; an entry may be named twice.
  std::vector<Change> take_changes();

 private:
  uint32_t size() const { return static_cast<uint32_t>(entries_.size()); }
  uint32_t place_of(uint32_t row) const;
  void set(uint32_t at, RowMapEntry entry);

  std::vector<RowMapEntry> entries_;
  std::vector<uint32_t> changed_;
};

}  // namespace recengine
