#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "ops/row_map.h"
#include "recengine/tensor.h"

namespace recengine {

// Which rows a cache holds, chosen as TinyLFU does (Einziger, Friedman, Manes, ACM TOS 13, 2017):
// rows are counted as they are read, held or not; a row takes the place of a held one whose count
// is lower; all counts are halved now and then, so that what was popular once fades.
class HotRows {
 public:
  // Begins with rows 0, 1, … in slots 0, 1, …
  explicit HotRows(uint32_t capacity);

  uint32_t capacity() const { return static_cast<uint32_t>(counts_.size()); }
  RowMap& map() { return map_; }

  // Rows that were read.
  void count(Span<const uint32_t> rows);

  // Forgets all counts but of these rows, the first `capacity` of them, and gives them one that a
  // row that was read by chance does not reach.
  void start_with(Span<const uint32_t> rows);

  // Which of these rows are hotter than held ones, and the slots of those.
  std::vector<RowMapEntry> choose(std::vector<uint32_t> rows) const;

  // The two halves of a replacement: in between, neither the old rows nor the new ones are held.
  void release(const std::vector<RowMapEntry>& chosen);
  void hold(const std::vector<RowMapEntry>& chosen);

 private:
  uint16_t& count_of(uint32_t row);
  uint16_t count_of(uint32_t row) const;
  std::vector<uint32_t> coldest_slots(std::size_t wanted) const;
  void halve();

  RowMap map_;
  std::vector<uint32_t> rows_;                     // [capacity], of the slots
  std::vector<uint16_t> counts_;                   // [capacity], of the slots
  std::unordered_map<uint32_t, uint16_t> others_;  // counts of rows that are not held
  int64_t counted_ = 0;                            // since counts were halved
};

}  // namespace recengine
