#include "ops/exclusions.h"

#include "cpu/thread_pool.h"

namespace recengine {
namespace {

constexpr int64_t kWorthSharing = 1 << 11;  // rows, which several threads put into sets
constexpr int64_t kLeastSlots = 2;          // for each row

}  // namespace

void Exclusions::finish(ThreadPool* pool) {
  if (rows_.empty()) return;
  int64_t slots = 0;
  sets_.resize(static_cast<size_t>(queries()));
  for (int64_t query = 0; query < queries(); ++query) {
    Set& set = sets_[static_cast<size_t>(query)];
    set.first = slots;
    set.bits = 1;
    while (int64_t{1} << set.bits < kLeastSlots * of(query).size) ++set.bits;
    slots += int64_t{1} << set.bits;
  }
  slots_.assign(static_cast<size_t>(slots), kNoRow);
  filters_.assign(static_cast<size_t>(queries() * kFilterWords), 0);
  const auto size = static_cast<int64_t>(rows_.size());
  for_each(size >= kWorthSharing ? pool : nullptr, queries(),
           [this](int64_t query) { fill_set(query); });
}

void Exclusions::fill_set(int64_t query) {
  const Set set = sets_[static_cast<size_t>(query)];
  const size_t mask = (size_t{1} << set.bits) - 1;
  uint32_t* const slots = slots_.data() + set.first;
  for (const uint32_t row : of(query)) {
    size_t slot = slot_of(row, set.bits);
    while (slots[slot] != kNoRow && slots[slot] != row) slot = (slot + 1) & mask;
    slots[slot] = row;
    filters_[static_cast<size_t>(filter_word(query, row))] |= uint64_t{1} << row % kBitmapWord;
  }
}

bool Exclusions::is_in_set(int64_t query, uint32_t row) const {
  const Set set = sets_[static_cast<size_t>(query)];
  const size_t mask = (size_t{1} << set.bits) - 1;
  const uint32_t* const slots = slots_.data() + set.first;
  size_t slot = slot_of(row, set.bits);
  while (slots[slot] != kNoRow && slots[slot] != row) slot = (slot + 1) & mask;
  return slots[slot] == row;
}

}  // namespace recengine
