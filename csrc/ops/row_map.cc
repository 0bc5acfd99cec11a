#include "ops/row_map.h"

namespace recengine {

// The row's entry, or the empty one where it would be.
uint32_t RowMap::place_of(uint32_t row) const {
  uint32_t at = home_entry(row, size());
  while (entries_[at].row != row && entries_[at].row != kEmptyEntry) at = next_entry(at, size());
  return at;
}

void RowMap::set(uint32_t at, RowMapEntry entry) {
  entries_[at] = entry;
  changed_.push_back(at);
}

const RowMapEntry* RowMap::find(uint32_t row) const {
  const RowMapEntry& entry = entries_[place_of(row)];
  return entry.row == row ? &entry : nullptr;
}

void RowMap::insert(RowMapEntry entry) { set(place_of(entry.row), entry); }

// Entries behind the gap move into it, so that no search ends there too early (Knuth, TAOCP 3,
// 6.4, Algorithm R).
void RowMap::erase(uint32_t row) {
  const auto steps = [this](uint32_t from, uint32_t to) {
    return to >= from ? to - from : to + size() - from;
  };
  uint32_t gap = place_of(row);
  for (uint32_t at = next_entry(gap, size()); entries_[at].row != kEmptyEntry;
       at = next_entry(at, size())) {
    if (steps(home_entry(entries_[at].row, size()), at) < steps(gap, at)) continue;
    set(gap, entries_[at]);
    gap = at;
  }
  set(gap, {kEmptyEntry, 0});
}

std::vector<RowMap::Change> RowMap::take_changes() {
  std::vector<Change> changes;
  changes.reserve(changed_.size());
  for (const uint32_t at : changed_) changes.push_back({at, entries_[at]});
  changed_.clear();
  return changes;
}

}  // namespace recengine
