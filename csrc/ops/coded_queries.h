#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops/code_scan_kernel.h"
#include "ops/item_codes.h"
#include "ops/search.h"

namespace recengine {

CodeScan code_scan_for(Isa isa);
CodeThresholds code_thresholds_for(Isa isa);

// A query as signed codes: about scale * code, and its part of the bounds.
struct CodedQuery {
  float scale = 1;
  int32_t offset = 0;     // kCodeOffset * sum of its codes: what the items' offset adds to products
  float slack = 0;        // of every bound
  float error_share = 0;  // of a block's error that is added to that
};

// Some queries of a search as a view of the items' codes is multiplied with.
class CodedQueries {
 public:
  CodedQueries(Isa isa, const Search& search, int64_t first, int64_t count, const CodeView& view);

  const CodedQuery& operator[](int64_t q) const { return queries_[static_cast<size_t>(q)]; }

  // A tile of queries, those from `first` (a multiple of kTileQueries) on, against a block.
  // `thresholds` are least products, offset included; `ahead` is a block that will be scanned soon,
  // or null.
  CodeTile tile(int64_t first, int64_t block, const int32_t* thresholds, int64_t threshold_stride,
                const uint8_t* ahead) const {
    return {items_.block(view_, block),
            view_.steps,
            codes_.data() + first * stride(),
            tile_size(first),
            thresholds,
            threshold_stride,
            ahead};
  }

  // Thresholds [blocks] of a query for the items of some blocks whose scores reach `wanted`.
  void set_thresholds(CodeThresholds kernel, int64_t q, float wanted, int64_t first_block,
                      int64_t blocks, int32_t* thresholds) const {
    const CodedQuery& query = (*this)[q];
    kernel({wanted - query.slack, query.error_share, 1 / query.scale, query.offset},
           view_.errors.data() + first_block, items_.inverse_scales() + first_block, blocks,
           thresholds);
  }

  // How far the score of an item of the block may be from its estimate.
  float bound(int64_t q, int64_t block) const {
    return (*this)[q].slack + view_.errors[static_cast<size_t>(block)] * (*this)[q].error_share;
  }

  // What a unit of a product with an item of the block stands for.
  float unit(int64_t q, int64_t block) const { return (*this)[q].scale * items_.scales()[block]; }

 private:
  int64_t stride() const { return view_.steps * kStepDims; }

  // Of the tile that begins there.
  int tile_size(int64_t first) const {
    return static_cast<int>(std::min<int64_t>(kTileQueries, count_ - first));
  }

  const ItemCodes& items_;
  const CodeView& view_;
  int64_t count_;
  std::vector<int8_t> codes_;  // of tiles of queries, each [steps, queries, kStepDims]
  std::vector<CodedQuery> queries_;
};

}  // namespace recengine
