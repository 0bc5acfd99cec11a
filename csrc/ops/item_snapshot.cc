#include "ops/item_snapshot.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "ops/search.h"
#include "recengine/error.h"

namespace recengine {
namespace {

// A row as a call names it.
struct NamedRow {
  int64_t row;
  int64_t position;  // in the call

  friend bool operator<(const NamedRow& a, const NamedRow& b) {
    return a.row != b.row ? a.row < b.row : a.position < b.position;
  }
};

[[noreturn]] void fail(const NamedRow& named, const std::string& expected) {
  throw InputError("[live_item_index] rows[" + std::to_string(named.position) + "]: expected " +
                   expected + ", found " + std::to_string(named.row));
}

// In ascending order, each within `total` and given once.
std::vector<NamedRow> sort_rows(Span<const int64_t> rows, int64_t total) {
  std::vector<NamedRow> sorted;
  sorted.reserve(static_cast<size_t>(rows.size));
  for (int64_t i = 0; i < rows.size; ++i) {
    sorted.push_back({rows[i], i});
    if (rows[i] < 0 || rows[i] >= total) {
      fail(sorted.back(), "0 to " + std::to_string(total - 1));
    }
  }
  std::sort(sorted.begin(), sorted.end());
  const auto repeated =
      std::adjacent_find(sorted.begin(), sorted.end(),
                         [](const NamedRow& a, const NamedRow& b) { return a.row == b.row; });
  if (repeated != sorted.end()) fail(repeated[1], "rows that differ");
  return sorted;
}

// What is both live and allowed; `memory` takes it where neither says it alone.
const uint64_t* intersect(const SharedBitmap& live, const uint64_t* allowed, Bitmap& memory) {
  if (live == nullptr) return allowed;
  if (allowed == nullptr) return live->data();
  memory.resize(live->size());
  std::transform(live->begin(), live->end(), allowed, memory.begin(),
                 [](uint64_t a, uint64_t b) { return a & b; });
  return memory.data();
}

}  // namespace

ItemSnapshot::ItemSnapshot(ItemIndex index)
    : delta_(index.dim()), rows_(index.rows()), size_(index.rows()) {
  base_ = std::make_shared<const Base>(Base{std::move(index), nullptr});
}

ItemSnapshot ItemSnapshot::with_appended(int64_t count, const float* units) const {
  std::vector<int64_t> rows(static_cast<size_t>(count));
  std::iota(rows.begin(), rows.end(), rows_);
  ItemSnapshot next = *this;
  next.delta_ = delta_.with(rows, units);
  next.rows_ += count;
  next.size_ += count;
  return next;
}

ItemSnapshot ItemSnapshot::with_replaced(Span<const int64_t> rows, const float* units) const {
  ItemSnapshot next = without(rows);
  next.delta_ = next.delta_.with(rows, units);
  next.size_ += rows.size;
  return next;
}

ItemSnapshot ItemSnapshot::without(Span<const int64_t> rows) const {
  const Places places = find(rows);
  ItemSnapshot next = *this;
  if (!places.base_rows.empty()) {
    Bitmap live = copy_of(base_live_, base_->index.rows());
    for (const int64_t row : places.base_rows) clear_row(live, row);
    next.base_live_ = std::make_shared<const Bitmap>(std::move(live));
  }
  next.delta_ = delta_.without(places.delta_positions);
  next.size_ -= rows.size;
  return next;
}

bool ItemSnapshot::is_live_in_base(int64_t row) const {
  return row < base_->index.rows() && is_set(words_of(base_live_), row);
}

ItemSnapshot::Places ItemSnapshot::find(Span<const int64_t> rows) const {
  Places places;
  std::vector<NamedRow> elsewhere;
  for (const NamedRow& named : sort_rows(rows, rows_)) {
    if (is_live_in_base(named.row)) {
      places.base_rows.push_back(named.row);
    } else {
      elsewhere.push_back(named);
    }
  }
  // One pass over the delta finds all: no map to keep in step with it.
  std::vector<bool> found(elsewhere.size());
  for (int64_t i = 0; i < delta_.count() && !elsewhere.empty(); ++i) {
    const auto place =
        std::lower_bound(elsewhere.begin(), elsewhere.end(), NamedRow{delta_.row(i), 0});
    if (place == elsewhere.end() || place->row != delta_.row(i) || !delta_.is_live(i)) continue;
    found[static_cast<size_t>(place - elsewhere.begin())] = true;
    places.delta_positions.push_back(i);
  }
  const auto missing = std::find(found.begin(), found.end(), false);
  if (missing != found.end()) fail(elsewhere[missing - found.begin()], "a row not removed before");
  return places;
}

std::shared_ptr<const ItemSnapshot::Base> ItemSnapshot::pack() const {
  const Matrix<const float> before = base_->index.unit_vectors().floats;
  const int64_t dim = before.cols;
  auto base = std::make_shared<Base>();
  base->units.reset(new float[static_cast<size_t>(rows_ * dim)]);
  const Matrix<float> units(base->units.get(), rows_, dim);
  for (int64_t row = 0; row < rows_; ++row) {
    if (is_live_in_base(row)) {
      std::copy_n(before.row(row), dim, units.row(row));
    } else {
      std::fill_n(units.row(row), dim, 0.0f);
    }
  }
  for (int64_t i = 0; i < delta_.count(); ++i) {
    if (delta_.is_live(i)) std::copy_n(delta_.unit(i), dim, units.row(delta_.row(i)));
  }
  base->index = ItemIndex::from_unit_vectors({units, {}});
  return base;
}

ItemSnapshot ItemSnapshot::on(std::shared_ptr<const Base> base, const ItemSnapshot& packed) const {
  // Live on the new base is what still is where it was packed from.
  Bitmap live = copy_of(base_live_, base_->index.rows());
  live.resize(static_cast<size_t>(bitmap_words(packed.rows_)));
  for (int64_t i = 0; i < packed.delta_.count(); ++i) {
    if (delta_.is_live(i)) set_row(live, delta_.row(i));
  }
  ItemSnapshot next = *this;
  next.base_ = std::move(base);
  next.base_live_ =
      live == all_set(packed.rows_) ? nullptr : std::make_shared<const Bitmap>(std::move(live));
  next.delta_ = delta_.tail(packed.delta_.count());
  return next;
}

void ItemSnapshot::search(const Context& context, const TopKQuery& query, Matrix<int64_t> out_rows,
                          Matrix<float> out_scores, TopKCertificate* certificates) const {
  const CheckedCall call(context.pool, rows_, dim(), query, out_rows, out_scores, certificates);
  if (call.asks_nothing()) return;
  Bitmap memory;
  const uint64_t* allowed = query.allow_bitmap.data;
  recengine::search(context, call.over(base_->index, intersect(base_live_, allowed, memory)));
  if (delta_.count() > 0) search_delta(context, call.over(base_->index, allowed), delta_);
}

}  // namespace recengine
