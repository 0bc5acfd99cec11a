#include "ops/kept_rows.h"

#include <algorithm>
#include <utility>

#include "recengine/vocabulary.h"

namespace recengine {
namespace {

uint64_t bits_below(int64_t bit) { return (uint64_t{1} << bit) - 1; }

// The bits of `word` that are in `kept`, moved together: kept by kept, or gap by gap where these
// are fewer.
uint64_t close_gaps(uint64_t word, uint64_t kept) {
  if ((word & kept) == 0) return 0;
  if (__builtin_popcountll(kept) < kBitmapWord / 2) {
    uint64_t closed = 0;
    for (int i = 0; kept != 0; ++i, kept &= kept - 1) {
      closed |= (word >> __builtin_ctzll(kept) & 1) << i;
    }
    return closed;
  }
  word &= kept;
  for (uint64_t gaps = ~kept; gaps != 0;) {
    const uint64_t below = bits_below(kBitmapWord - 1 - __builtin_clzll(gaps));
    word = (word & below) | (word >> 1 & ~below);
    gaps &= below;
  }
  return word;
}

// The opposite: gaps are 0.
uint64_t open_gaps(uint64_t word, uint64_t kept) {
  if (word == 0) return 0;
  if (__builtin_popcountll(kept) < kBitmapWord / 2) {
    uint64_t opened = 0;
    for (int i = 0; kept != 0; ++i, kept &= kept - 1) {
      opened |= (word >> i & 1) << __builtin_ctzll(kept);
    }
    return opened;
  }
  for (uint64_t gaps = ~kept; gaps != 0; gaps &= gaps - 1) {
    const uint64_t below = bits_below(__builtin_ctzll(gaps));
    word = (word & below) | (word & ~below) << 1;
  }
  return word;
}

}  // namespace

KeptRows::KeptRows(Bitmap kept, int64_t rows) : rows_(rows), size_(0) {
  std::vector<uint32_t> before;
  before.reserve(kept.size());
  for (const uint64_t word : kept) {
    before.push_back(static_cast<uint32_t>(size_));
    size_ += __builtin_popcountll(word);
  }
  if (are_all()) return;
  kept_ = std::move(kept);
  before_ = std::move(before);
}

int64_t KeptRows::position(int64_t row) const {
  if (are_all()) return row;
  const auto word = static_cast<size_t>(row / kBitmapWord);
  return before_[word] + __builtin_popcountll(kept_[word] & bits_below(row % kBitmapWord));
}

int64_t KeptRows::row(int64_t position) const {
  if (are_all()) return position;
  const auto next =
      std::upper_bound(before_.begin(), before_.end(), static_cast<uint32_t>(position));
  const int64_t word = next - before_.begin() - 1;
  uint64_t bits = kept_[static_cast<size_t>(word)];
  for (int64_t i = before_[static_cast<size_t>(word)]; i < position; ++i) bits &= bits - 1;
  return word * kBitmapWord + __builtin_ctzll(bits);
}

Bitmap KeptRows::to_positions(const uint64_t* rows) const {
  if (are_all()) return {rows, rows + bitmap_words(rows_)};
  Bitmap positions(static_cast<size_t>(bitmap_words(size_) + 1));  // one to write behind the last
  for (size_t word = 0; word < kept_.size(); ++word) {
    const uint64_t bits = close_gaps(rows[word], kept_[word]);
    if (bits == 0) continue;
    const int64_t shift = before_[word] % kBitmapWord;
    uint64_t* const out = positions.data() + before_[word] / kBitmapWord;
    out[0] |= bits << shift;
    if (shift != 0) out[1] |= bits >> (kBitmapWord - shift);
  }
  positions.pop_back();
  return positions;
}

Bitmap KeptRows::to_rows(const uint64_t* positions) const {
  if (are_all()) return {positions, positions + bitmap_words(rows_)};
  Bitmap rows(kept_.size());
  const int64_t words = bitmap_words(size_);
  for (size_t word = 0; word < kept_.size(); ++word) {
    const int64_t first = before_[word] / kBitmapWord;
    const int64_t shift = before_[word] % kBitmapWord;
    uint64_t bits = first < words ? positions[first] >> shift : 0;
    if (shift != 0 && first + 1 < words) bits |= positions[first + 1] << (kBitmapWord - shift);
    rows[word] = open_gaps(bits, kept_[word]) & kept_[word];
  }
  return rows;
}

Exclusions KeptRows::to_positions(const Exclusions& rows) const {
  Exclusions positions;
  for (int64_t query = 0; query < rows.queries(); ++query) {
    for (const uint32_t row : rows.of(query)) {
      if (hold(row)) positions.add(position(row));
    }
    positions.end_query();
  }
  positions.finish(nullptr);
  return positions;
}

void KeptRows::to_rows(Matrix<int64_t> positions) const {
  if (are_all()) return;
  for (int64_t i = 0; i < positions.rows * positions.cols; ++i) {
    if (positions.data[i] != kNoItem) positions.data[i] = row(positions.data[i]);
  }
}

}  // namespace recengine
