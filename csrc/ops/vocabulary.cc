#include "recengine/vocabulary.h"

#include <algorithm>
#include <limits>

#include "recengine/error.h"

namespace recengine {
namespace {

constexpr int32_t kEmptySlot = -1;

// The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): consecutive ids spread evenly.
uint64_t mix(int64_t key) {
  uint64_t x = static_cast<uint64_t>(key);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Maps a hash to [0, capacity) by its high bits, without a division.
int64_t home_slot(int64_t key, int64_t capacity) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<int64_t>((Wide{mix(key)} * static_cast<uint64_t>(capacity)) >> 64);
}

}  // namespace

Vocabulary Vocabulary::range(int64_t first, int64_t count) {
  if (count < 0 || (count > 0 && first > std::numeric_limits<int64_t>::max() - (count - 1))) {
    throw InputError("[vocabulary] count: expected ids within int64, found first " +
                     std::to_string(first) + " and count " + std::to_string(count));
  }
  if (first <= kNoItem && count > 0 && first + (count - 1) >= kNoItem) {
    throw InputError("[vocabulary] the range from " + std::to_string(first) + " of " +
                     std::to_string(count) + " ids holds -1, which means \"no item\"");
  }
  Vocabulary vocabulary;
  vocabulary.first_ = first;
  vocabulary.count_ = count;
  return vocabulary;
}

Vocabulary Vocabulary::hashed(Span<const int64_t> slot_keys, Span<const int32_t> slot_rows,
                              int64_t count) {
  if (slot_keys.size != slot_rows.size || slot_keys.empty()) {
    throw InputError("[vocabulary] slots: expected as many rows as keys, at least 1; found " +
                     std::to_string(slot_keys.size) + " keys and " +
                     std::to_string(slot_rows.size) + " rows");
  }
  Vocabulary vocabulary;
  vocabulary.count_ = count;
  vocabulary.slot_keys_ = slot_keys;
  vocabulary.slot_rows_ = slot_rows;
  return vocabulary;
}

int64_t Vocabulary::row(int64_t id) const {
  const int64_t capacity = slot_keys_.size;
  if (capacity == 0) {
    const uint64_t offset = static_cast<uint64_t>(id) - static_cast<uint64_t>(first_);
    return offset < static_cast<uint64_t>(count_) ? static_cast<int64_t>(offset) + 1 : kOovRow;
  }
  int64_t slot = home_slot(id, capacity);
  // A damaged table may have no empty slot: give up after one round.
  for (int64_t probe = 0; probe < capacity; ++probe) {
    if (slot_rows_[slot] == kEmptySlot) return kOovRow;
    if (slot_keys_[slot] == id) return slot_rows_[slot];
    slot = slot + 1 == capacity ? 0 : slot + 1;
  }
  return kOovRow;
}

void Vocabulary::lookup(Span<const int64_t> ids, Span<int64_t> rows) const {
  if (ids.size != rows.size) {
    throw InputError("[vocabulary] rows: expected " + std::to_string(ids.size) + ", found " +
                     std::to_string(rows.size));
  }
  // Every probe is a cache miss in a large table: start the next ones early.
  constexpr int64_t kAhead = 16;
  const int64_t capacity = slot_keys_.size;
  for (int64_t i = 0; i < ids.size; ++i) {
    if (capacity > 0 && i + kAhead < ids.size) {
      const int64_t slot = home_slot(ids[i + kAhead], capacity);
      __builtin_prefetch(slot_keys_.data + slot);
      __builtin_prefetch(slot_rows_.data + slot);
    }
    rows[i] = row(ids[i]);
  }
}

VocabularySlots build_slots(Span<const int64_t> keys) {
  if (keys.size >= std::numeric_limits<int32_t>::max()) {
    throw InputError("[build_slots] keys: expected fewer than 2147483647, found " +
                     std::to_string(keys.size));
  }
  const int64_t capacity = std::max<int64_t>(1, (keys.size * 4 + 2) / 3);  // 3 of 4 slots used
  VocabularySlots slots;
  slots.keys.assign(static_cast<size_t>(capacity), 0);
  slots.rows.assign(static_cast<size_t>(capacity), kEmptySlot);
  for (int64_t i = 0; i < keys.size; ++i) {
    if (keys[i] == kNoItem) {
      throw InputError("[build_slots] keys: position " + std::to_string(i) +
                       " is -1, which means \"no item\"");
    }
    size_t slot = static_cast<size_t>(home_slot(keys[i], capacity));
    while (slots.rows[slot] != kEmptySlot) {
      if (slots.keys[slot] == keys[i]) {
        throw InputError("[build_slots] keys: position " + std::to_string(i) + " repeats key " +
                         std::to_string(keys[i]) + " of position " +
                         std::to_string(slots.rows[slot] - 1));
      }
      slot = slot + 1 == slots.keys.size() ? 0 : slot + 1;
    }
    slots.keys[slot] = keys[i];
    slots.rows[slot] = static_cast<int32_t>(i + 1);
  }
  return slots;
}

}  // namespace recengine
