#include "ops/hot_rows.h"

#include <algorithm>
#include <numeric>
#include <unordered_set>
#include <utility>

namespace recengine {
namespace {

constexpr uint16_t kMaxCount = UINT16_MAX;
constexpr uint16_t kStartCount = 2;
// Rows counted until counts are halved: enough to tell rows apart that are read half as often as
// an average held one.
constexpr int64_t kWindowPerSlot = 8;
constexpr int64_t kLeastWindow = 1 << 16;

}  // namespace

HotRows::HotRows(uint32_t capacity) : map_(capacity), rows_(capacity), counts_(capacity) {
  std::iota(rows_.begin(), rows_.end(), 0u);
  for (uint32_t slot = 0; slot < capacity; ++slot) map_.insert({slot, slot});
  map_.take_changes();
}

uint16_t& HotRows::count_of(uint32_t row) {
  const RowMapEntry* held = map_.find(row);
  return held != nullptr ? counts_[held->slot] : others_[row];
}

uint16_t HotRows::count_of(uint32_t row) const {
  if (const RowMapEntry* held = map_.find(row)) return counts_[held->slot];
  const auto found = others_.find(row);
  return found == others_.end() ? uint16_t{0} : found->second;
}

void HotRows::count(Span<const uint32_t> rows) {
  const int64_t window = std::max(kWindowPerSlot * capacity(), kLeastWindow);
  for (const uint32_t row : rows) {
    uint16_t& count = count_of(row);
    if (count < kMaxCount) ++count;
    if (++counted_ == window) halve();
  }
}

void HotRows::halve() {
  for (uint16_t& count : counts_) count /= 2;
  for (auto other = others_.begin(); other != others_.end();) {
    other->second /= 2;
    other = other->second == 0 ? others_.erase(other) : std::next(other);
  }
  counted_ = 0;
}

void HotRows::start_with(Span<const uint32_t> rows) {
  std::fill(counts_.begin(), counts_.end(), uint16_t{0});
  others_.clear();
  counted_ = 0;
  std::unordered_set<uint32_t> first;
  for (const uint32_t row : rows) {
    if (first.size() == capacity()) break;
    if (first.insert(row).second) count_of(row) = kStartCount;
  }
}

// In the order of their counts: a counting sort of which only the beginning is kept.
std::vector<uint32_t> HotRows::coldest_slots(std::size_t wanted) const {
  std::vector<std::size_t> begin(std::size_t{kMaxCount} + 2);  // of the slots with a count
  for (const uint16_t count : counts_) ++begin[std::size_t{count} + 1];
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  std::vector<uint32_t> slots(std::min(wanted, counts_.size()));
  for (uint32_t slot = 0; slot < capacity(); ++slot) {
    const std::size_t at = begin[counts_[slot]]++;
    if (at < slots.size()) slots[at] = slot;
  }
  return slots;
}

std::vector<RowMapEntry> HotRows::choose(std::vector<uint32_t> rows) const {
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  std::vector<std::pair<uint16_t, uint32_t>> counted;  // what is not held
  for (const uint32_t row : rows) {
    if (map_.find(row) == nullptr) counted.emplace_back(count_of(row), row);
  }
  std::stable_sort(counted.begin(), counted.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<RowMapEntry> chosen;
  for (const uint32_t slot : coldest_slots(counted.size())) {
    const auto& [count, row] = counted[chosen.size()];
    if (count <= counts_[slot]) break;
    chosen.push_back({row, slot});
  }
  return chosen;
}

void HotRows::release(const std::vector<RowMapEntry>& chosen) {
  for (const RowMapEntry& entry : chosen) {
    const uint32_t old = rows_[entry.slot];
    map_.erase(old);
    if (counts_[entry.slot] > 0) others_[old] = counts_[entry.slot];
  }
}

void HotRows::hold(const std::vector<RowMapEntry>& chosen) {
  for (const RowMapEntry& entry : chosen) {
    counts_[entry.slot] = count_of(entry.row);
    others_.erase(entry.row);
    rows_[entry.slot] = entry.row;
    map_.insert(entry);
  }
}

}  // namespace recengine
