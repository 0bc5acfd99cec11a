#pragma once

#include <cstdint>
#include <vector>

#include "ops/bitmap.h"
#include "ops/search.h"
#include "recengine/tensor.h"

namespace recengine {

// Some of many rows, numbered anew without gaps: a kept row's position is how many kept ones come
// before it. When all are kept, positions are rows, and nothing is stored.
class KeptRows {
 public:
  explicit KeptRows(int64_t rows) : rows_(rows), size_(rows) {}
  KeptRows(Bitmap kept, int64_t rows);

  int64_t size() const { return size_; }
  bool are_all() const { return size_ == rows_; }

  bool hold(int64_t row) const {
    return row < rows_ && is_set(are_all() ? nullptr : kept_.data(), row);
  }
  int64_t position(int64_t row) const;  // of a kept row
  int64_t row(int64_t position) const;

  // A bitmap of rows as one of positions, and back; rows that are not kept are not set.
  Bitmap to_positions(const uint64_t* rows) const;
  Bitmap to_rows(const uint64_t* positions) const;

  // Those of the rows that are kept, by position.
  Exclusions to_positions(const Exclusions& rows) const;

  // Positions become rows; kNoItem stays.
  void to_rows(Matrix<int64_t> positions) const;

 private:
  int64_t rows_;
  int64_t size_;
  Bitmap kept_;                   // empty when all are
  std::vector<uint32_t> before_;  // kept rows before each word
};

}  // namespace recengine
