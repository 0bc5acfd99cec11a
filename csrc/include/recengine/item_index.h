#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "recengine/tensor.h"

namespace recengine {

class ItemCodes;   // ops/item_codes.h
class ThreadPool;  // cpu/thread_pool.h

// Unit vectors as they are stored, [rows, dim]; borrowed. Those in fp16 stand for their values in
// fp32, of which a score is made.
struct ItemVectors {
  Matrix<const float> floats;
  Matrix<const uint16_t> halves;  // bits of fp16; one of the two is empty

  bool is_half() const { return halves.cols > 0; }
  int64_t rows() const { return is_half() ? halves.rows : floats.rows; }
  int64_t dim() const { return is_half() ? halves.cols : floats.cols; }
};

// Unit-length item vectors packed for exact search. Immutable and shared by all queries. A catalog
// too large for the caches also gets 8-bit codes, at most dim + 5 bytes an item, which is what a
// search reads; of the vectors it then reads a few rows.
class ItemIndex {
 public:
  // Normalises and packs `vectors` [rows, dim]; rows of norm 0 stay 0 and score 0. Throws
  // InputError naming the row when a value is not finite. `vectors` is not kept.
  static ItemIndex build(Matrix<const float> vectors, ThreadPool* pool = nullptr);

  // Packs unit vectors as build() would leave them, without copying rows that may stay
  // memory-mapped: `unit_vectors` must outlive the index.
  static ItemIndex from_unit_vectors(const ItemVectors& unit_vectors, ThreadPool* pool = nullptr);

  int64_t rows() const { return unit_vectors_.rows(); }
  int64_t dim() const { return unit_vectors_.dim(); }
  const ItemVectors& unit_vectors() const { return unit_vectors_; }
  const ItemCodes* codes() const { return codes_.get(); }  // null for a small catalog

  // How many threads a search for so many queries could keep busy, at least 1.
  int64_t threads_worth(int64_t queries) const;

  // How many dimensions of rotated vectors a search may read instead of all, ascending; empty where
  // that does not pay.
  std::vector<int64_t> partial_scans() const;

 private:
  std::shared_ptr<const float> owned_;  // null when the vectors are borrowed
  ItemVectors unit_vectors_;
  std::shared_ptr<const ItemCodes> codes_;
};

// out = in / ||in||, the norm summed in fp64; zero stays zero. False when a value is not finite.
bool normalise(const float* in, int64_t dim, float* out);

}  // namespace recengine
