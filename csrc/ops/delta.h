#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ops/bitmap.h"
#include "ops/search.h"
#include "recengine/context.h"
#include "recengine/tensor.h"

namespace recengine {

// Vectors of rows that were appended or replaced since an index was built, in the order of the
// calls; a row may have several, of which the last may be live. Immutable: a delta that is made
// from another shares its memory and writes behind what the other counts.
class Delta {
 public:
  explicit Delta(int64_t dim) : dim_(dim) {}

  int64_t count() const { return count_; }  // of vectors, those no longer live included
  const float* unit(int64_t position) const { return memory_->units.get() + position * dim_; }
  int64_t dim() const { return dim_; }
  int64_t row(int64_t position) const { return memory_->rows[position]; }
  bool is_live(int64_t position) const { return is_set(words_of(live_), position); }

  // With the unit vectors [rows, dim] of these rows behind the others. Only for the latest delta of
  // its memory: a second call on the same one overwrites what the first has added.
  Delta with(Span<const int64_t> rows, const float* units) const;

  // With the vectors at these positions no longer live.
  Delta without(const std::vector<int64_t>& positions) const;

  // The vectors from this position on, in memory of their own unless they are all.
  Delta tail(int64_t first) const;

 private:
  struct Memory {
    Memory(int64_t vectors, int64_t dim);
    int64_t capacity;
    std::unique_ptr<float[]> units;  // [capacity, dim]
    std::unique_ptr<int64_t[]> rows;
  };

  void reserve(int64_t vectors);

  int64_t dim_;
  int64_t count_ = 0;
  std::shared_ptr<Memory> memory_;  // null when nothing was ever added
  SharedBitmap live_;               // of positions
};

// Answers that a search has already written, and its certificates, become those on the delta too.
// The search's bitmap and exclusions name rows as the delta does.
void search_delta(const Context& context, const Search& search, const Delta& delta);

}  // namespace recengine
