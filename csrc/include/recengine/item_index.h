#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "recengine/context.h"
#include "recengine/tensor.h"

namespace recengine {

class ItemCodes;  // ops/item_codes.h

// Unit vectors as they are stored, [rows, dim]; borrowed. Those in fp16 stand for their values in
// fp32, of which a score is made.
struct ItemVectors {
  Matrix<const float> floats;
  Matrix<const uint16_t> halves;  // bits of fp16; one of the two is empty

  bool is_half() const { return halves.cols > 0; }
  int64_t rows() const { return is_half() ? halves.rows : floats.rows; }
  int64_t dim() const { return is_half() ? halves.cols : floats.cols; }
};

// The codes of a large catalog as they are stored beside its vectors, for packing takes long. They
// are the same on every machine.
struct StoredCodes {
  Span<const uint8_t> codes;  // of all blocks of items; split ones first the high bits; borrowed
  std::vector<float> bounds;  // [2 + views, blocks]: scales, largest norms, errors of each view;
                              // of split codes [3 + views, blocks], then errors of the high bits
  std::vector<float> axes;    // [dim, dim] that vectors were rotated to; empty: they were not
  std::vector<float> scans;   // [partial scans, 2]: dims, and the share of items that passes
};

// Unit-length item vectors packed for exact search. Immutable and shared by all queries. A catalog
// too large for the caches also gets 8-bit codes, at most dim + 8 bytes an item with bounds and the
// axes they are turned to, which is what a search reads; of the vectors it then reads a few rows.
class ItemIndex {
 public:
  // Normalises and packs `vectors` [rows, dim]; rows of norm 0 stay 0 and score 0. Throws
  // InputError naming the row when a value is not finite. `vectors` is not kept. `split`: whether
  // the high bits of codes are kept apart from the low ones, which is faster where they are read
  // from memory; if not said, by their size.
  static ItemIndex build(Matrix<const float> vectors, ThreadPool* pool = nullptr,
                         std::optional<bool> split = std::nullopt);

  // Packs unit vectors as build() would leave them, without copying rows that may stay
  // memory-mapped: `unit_vectors` must outlive the index.
  static ItemIndex from_unit_vectors(const ItemVectors& unit_vectors, ThreadPool* pool = nullptr,
                                     std::optional<bool> split = std::nullopt);

  // The index that from_unit_vectors() made, from the codes that it stored: `unit_vectors` and
  // `stored.codes` must outlive it. Throws InputError when they cannot be codes of these vectors;
  // some blocks are packed again and compared.
  static ItemIndex with_codes(const ItemVectors& unit_vectors, const StoredCodes& stored);

  // Some rows of an index, ascending, as an index of their own for a few calls: with codes, however
  // few they are, where `index` has them.
  static ItemIndex of_rows(const ItemIndex& index, Span<const uint32_t> rows,
                           const Context& context);

  int64_t rows() const { return unit_vectors_.rows(); }
  int64_t dim() const { return unit_vectors_.dim(); }
  const ItemVectors& unit_vectors() const { return unit_vectors_; }
  const ItemCodes* codes() const { return codes_.get(); }  // null for a small catalog

  // How many threads a search for so many queries could keep busy, at least 1.
  int64_t threads_worth(int64_t queries) const;

  // How many dimensions of rotated vectors a search may read instead of all, ascending; empty where
  // that does not pay.
  std::vector<int64_t> partial_scans() const;

  // Whether the high bits of its codes are kept apart; false for a small catalog.
  bool split_codes() const;

  // The codes, borrowed from this index; none for a small catalog.
  std::optional<StoredCodes> stored_codes() const;

 private:
  std::shared_ptr<const float> owned_;  // null when the vectors are borrowed
  ItemVectors unit_vectors_;
  std::shared_ptr<const ItemCodes> codes_;
};

// out = in / ||in||, the norm summed in fp64; zero stays zero. False when a value is not finite.
bool normalise(const float* in, int64_t dim, float* out);

}  // namespace recengine
