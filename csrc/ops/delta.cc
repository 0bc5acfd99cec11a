#include "ops/delta.h"

#include <algorithm>

namespace recengine {

namespace {

constexpr int64_t kLeastCapacity = 64;

}  // namespace

Delta::Memory::Memory(int64_t vectors, int64_t dim)
    : capacity(vectors),
      units(new float[static_cast<size_t>(vectors * dim)]),
      rows(new int64_t[static_cast<size_t>(vectors)]) {}

void Delta::reserve(int64_t vectors) {
  const int64_t capacity = memory_ == nullptr ? 0 : memory_->capacity;
  if (vectors <= capacity) return;
  auto larger = std::make_shared<Memory>(std::max({vectors, 2 * capacity, kLeastCapacity}), dim_);
  if (count_ > 0) {
    std::copy_n(memory_->units.get(), count_ * dim_, larger->units.get());
    std::copy_n(memory_->rows.get(), count_, larger->rows.get());
  }
  memory_ = std::move(larger);
}

Delta Delta::with(Span<const int64_t> rows, const float* units) const {
  Delta next = *this;
  if (rows.empty()) return next;
  next.reserve(count_ + rows.size);
  std::copy_n(units, rows.size * dim_, next.memory_->units.get() + count_ * dim_);
  std::copy(rows.begin(), rows.end(), next.memory_->rows.get() + count_);
  next.count_ += rows.size;
  if (live_ != nullptr) {
    Bitmap live = *live_;
    grow(live, count_, next.count_);
    next.live_ = std::make_shared<const Bitmap>(std::move(live));
  }
  return next;
}

Delta Delta::without(const std::vector<int64_t>& positions) const {
  Delta next = *this;
  if (positions.empty()) return next;
  Bitmap live = copy_of(live_, count_);
  for (const int64_t position : positions) clear_row(live, position);
  next.live_ = std::make_shared<const Bitmap>(std::move(live));
  return next;
}

Delta Delta::tail(int64_t first) const {
  if (first == 0) return *this;
  std::vector<int64_t> dead;
  for (int64_t position = first; position < count_; ++position) {
    if (!is_live(position)) dead.push_back(position - first);
  }
  const Span<const int64_t> rows(memory_->rows.get() + first, count_ - first);
  return Delta(dim_).with(rows, unit(first)).without(dead);
}

}  // namespace recengine
