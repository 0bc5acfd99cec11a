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
  Bitmap both(live->size());
  std::transform(live->begin(), live->end(), allowed, both.begin(),
                 [](uint64_t a, uint64_t b) { return a & b; });
  memory.swap(both);
  return memory.data();
}

int64_t count_rows(const Bitmap& bitmap) {
  return std::accumulate(bitmap.begin(), bitmap.end(), int64_t{0},
                         [](int64_t sum, uint64_t word) { return sum + count_set(word); });
}

}  // namespace

ItemSnapshot::ItemSnapshot(ItemIndex index)
    : base_size_(index.rows()), delta_(index.dim()), rows_(index.rows()), size_(index.rows()) {
  base_ = std::make_shared<const Base>(Base{std::move(index), KeptRows(rows_), nullptr});
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
  if (!places.base_positions.empty()) {
    Bitmap live = copy_of(base_live_, base_rows());
    for (const int64_t position : places.base_positions) clear_row(live, position);
    next.base_live_ = std::make_shared<const Bitmap>(std::move(live));
    next.base_size_ -= static_cast<int64_t>(places.base_positions.size());
  }
  next.delta_ = delta_.without(places.delta_positions);
  next.size_ -= rows.size;
  return next;
}

bool ItemSnapshot::is_live_in_base(int64_t row) const {
  return base_->rows.hold(row) && is_set(words_of(base_live_), base_->rows.position(row));
}

ItemSnapshot::Places ItemSnapshot::find(Span<const int64_t> rows) const {
  Places places;
  std::vector<NamedRow> elsewhere;
  for (const NamedRow& named : sort_rows(rows, rows_)) {
    if (is_live_in_base(named.row)) {
      places.base_positions.push_back(base_->rows.position(named.row));
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

// Those in the base and among the first vectors of the delta.
Bitmap ItemSnapshot::live_rows(int64_t num_deltas) const {
  Bitmap live = base_->rows.to_rows(copy_of(base_live_, base_rows()).data());
  live.resize(static_cast<size_t>(bitmap_words(rows_)));
  for (int64_t i = 0; i < num_deltas; ++i) {
    if (delta_.is_live(i)) set_row(live, delta_.row(i));
  }
  return live;
}

std::unique_ptr<float[]> ItemSnapshot::live_units(const KeptRows& live) const {
  const Matrix<const float> before = base_->index.unit_vectors().floats;
  std::unique_ptr<float[]> memory(new float[static_cast<size_t>(size_ * dim())]);
  const Matrix<float> units(memory.get(), size_, dim());
  for (int64_t row = 0; row < rows_; ++row) {
    if (!is_live_in_base(row)) continue;
    std::copy_n(before.row(base_->rows.position(row)), dim(), units.row(live.position(row)));
  }
  for (int64_t i = 0; i < delta_.count(); ++i) {
    if (!delta_.is_live(i)) continue;
    std::copy_n(delta_.unit(i), dim(), units.row(live.position(delta_.row(i))));
  }
  return memory;
}

std::shared_ptr<const ItemSnapshot::Base> ItemSnapshot::pack() const {
  auto base = std::make_shared<Base>(Base{{}, {live_rows(pending()), rows_}, nullptr});
  base->units = live_units(base->rows);
  const Matrix<const float> units(base->units.get(), size_, dim());
  base->index = ItemIndex::from_unit_vectors({units, {}});
  return base;
}

LiveItems ItemSnapshot::copy_live() const {
  const KeptRows live(live_rows(pending()), rows_);
  LiveItems items{std::vector<int64_t>(static_cast<size_t>(size_)), live_units(live)};
  std::iota(items.rows.begin(), items.rows.end(), int64_t{0});
  live.to_rows({items.rows.data(), 1, size_});
  return items;
}

ItemSnapshot ItemSnapshot::on(std::shared_ptr<const Base> base, const ItemSnapshot& packed) const {
  // Live on the new base is what still is where it was packed from.
  Bitmap live = base->rows.to_positions(live_rows(packed.pending()).data());
  ItemSnapshot next = *this;
  next.base_ = std::move(base);
  next.base_size_ = count_rows(live);
  next.base_live_ =
      next.dead_in_base() == 0 ? nullptr : std::make_shared<const Bitmap>(std::move(live));
  next.delta_ = delta_.tail(packed.delta_.count());
  return next;
}

void ItemSnapshot::search_base(const Context& context, const CheckedCall& call,
                               const uint64_t* allowed) const {
  const KeptRows& kept = base_->rows;
  Bitmap positions;
  if (allowed != nullptr && !kept.are_all()) {
    positions = kept.to_positions(allowed);
    allowed = positions.data();
  }
  Search search = call.over(base_->index, intersect(base_live_, allowed, positions));
  Exclusions exclusions;
  if (!kept.are_all()) {
    exclusions = kept.to_positions(*search.exclusions);
    search.exclusions = &exclusions;
  }
  recengine::search(context, search);
  kept.to_rows(search.out_rows);
}

void ItemSnapshot::search(const Context& context, const TopKQuery& query, Matrix<int64_t> out_rows,
                          Matrix<float> out_scores, TopKCertificate* certificates) const {
  const CheckedCall call(context.pool, rows_, dim(), query, out_rows, out_scores, certificates);
  if (call.asks_nothing()) return;
  const uint64_t* const allowed = query.allow_bitmap.data;
  search_base(context, call, allowed);
  if (delta_.count() > 0) search_delta(context, call.over(base_->index, allowed), delta_);
}

}  // namespace recengine
