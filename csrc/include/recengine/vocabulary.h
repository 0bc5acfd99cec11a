#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "recengine/tensor.h"

namespace recengine {

// Table rows of a vocabulary: row 0 is the out-of-vocabulary row, key i of the list has row i + 1.
constexpr int64_t kOovRow = 0;

// The key that means "no item"; it is never in a vocabulary.
constexpr int64_t kNoItem = -1;

// Maps raw int64 ids to table rows. Either a dense range of ids (no memory at all) or an
// open-addressing table of (key, row) slots, borrowed so that it can stay memory-mapped.
class Vocabulary {
 public:
  // Ids first .. first + count - 1 have rows 1 .. count.
  static Vocabulary range(int64_t first, int64_t count);

  // Slots as build_slots() laid them out; slot_rows of an empty slot is -1.
  static Vocabulary hashed(Span<const int64_t> slot_keys, Span<const int32_t> slot_rows,
                           int64_t count);

  // Number of keys, the out-of-vocabulary row not counted.
  int64_t size() const { return count_; }

  // What it is made from; a range has no slots.
  int64_t first() const { return first_; }
  Span<const int64_t> slot_keys() const { return slot_keys_; }
  Span<const int32_t> slot_rows() const { return slot_rows_; }

  // The row of one id; kOovRow when unknown.
  int64_t row(int64_t id) const;

  // rows[i] = row(ids[i]).
  void lookup(Span<const int64_t> ids, Span<int64_t> rows) const;

 private:
  int64_t first_ = 0;
  int64_t count_ = 0;
  Span<const int64_t> slot_keys_;
  Span<const int32_t> slot_rows_;
};

// Lays keys out for Vocabulary::hashed: at most 16 bytes a key. Throws InputError on a duplicate
// key or kNoItem, naming its position.
struct VocabularySlots {
  std::vector<int64_t> keys;  // [capacity]
  std::vector<int32_t> rows;  // [capacity]
};
VocabularySlots build_slots(Span<const int64_t> keys);

}  // namespace recengine
