#include "recengine/vocabulary.h"

#include <algorithm>
#include <limits>

#include "ops/vocabulary_slots.h"
#include "recengine/error.h"

namespace recengine {

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
  return find_row({slot_keys_.data, slot_rows_.data, slot_keys_.size, first_, count_}, id);
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
