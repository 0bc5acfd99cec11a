#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ops/bitmap.h"
#include "ops/delta.h"
#include "ops/kept_rows.h"
#include "recengine/context.h"
#include "recengine/item_index.h"
#include "recengine/live_item_index.h"
#include "recengine/ops/cosine_topk.h"
#include "recengine/tensor.h"

namespace recengine {

// The items of a LiveItemIndex at one moment; immutable, and what is made from it shares its
// memory. A row is live in the base, or in the delta, or was removed.
class ItemSnapshot {
 public:
  // An index of the rows that were live when it was packed and, unless it owns or borrows them
  // elsewhere, its vectors.
  struct Base {
    ItemIndex index;
    KeptRows rows;
    std::unique_ptr<float[]> units;
  };

  explicit ItemSnapshot(ItemIndex index);

  int64_t rows() const { return rows_; }  // removed ones included
  int64_t size() const { return size_; }  // live rows
  int64_t dim() const { return delta_.dim(); }
  int64_t pending() const { return delta_.count(); }
  int64_t base_rows() const { return base_->index.rows(); }
  int64_t dead_in_base() const { return base_rows() - base_size_; }
  const std::shared_ptr<const Base>& base() const { return base_; }

  // The items after a write; `units` are the unit vectors of the rows. Only for the latest
  // snapshot, see Delta::with(). Throw InputError when a row is not live or is given twice.
  ItemSnapshot with_appended(int64_t count, const float* units) const;
  ItemSnapshot with_replaced(Span<const int64_t> rows, const float* units) const;
  ItemSnapshot without(Span<const int64_t> rows) const;

  // All live vectors in one base, and no others.
  std::shared_ptr<const Base> pack() const;

  LiveItems copy_live() const;

  // These items on the base that was packed from `packed`, an earlier snapshot with the same base.
  ItemSnapshot on(std::shared_ptr<const Base> base, const ItemSnapshot& packed) const;

  // See cosine_topk().
  void search(const Context& context, const TopKQuery& query, Matrix<int64_t> out_rows,
              Matrix<float> out_scores, TopKCertificate* certificates) const;

 private:
  // Where the live vectors of some rows are.
  struct Places {
    std::vector<int64_t> base_positions;
    std::vector<int64_t> delta_positions;
  };

  Places find(Span<const int64_t> rows) const;
  bool is_live_in_base(int64_t row) const;
  Bitmap live_rows(int64_t num_deltas) const;
  std::unique_ptr<float[]> live_units(const KeptRows& live) const;  // by position
  void search_base(const Context& context, const CheckedCall& call, const uint64_t* allowed) const;

  std::shared_ptr<const Base> base_;
  SharedBitmap base_live_;  // of the base's positions
  int64_t base_size_;       // live ones
  Delta delta_;
  int64_t rows_;
  int64_t size_;
};

}  // namespace recengine
