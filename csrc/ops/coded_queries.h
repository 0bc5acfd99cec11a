#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops/code_scan_kernel.h"
#include "ops/item_codes.h"
#include "ops/search.h"

namespace recengine {

// A query as signed codes: about scale * code, and its part of the bounds.
struct CodedQuery {
  float scale = 1;
  int32_t offset = 0;     // kCodeOffset * sum of its codes: what the items' offset adds to products
  float slack = 0;        // of every bound
  float error_share = 0;  // of a block's error that is added to that
};

// Of some blocks, what the thresholds for their items are made of.
struct BlockTerms {
  static constexpr int64_t kMost = 16;
  int64_t size = 0;
  float errors[kMost];
  float inverse_scales[kMost];
};

// Some queries of a search as a view of the items' codes is multiplied with.
class CodedQueries {
 public:
  CodedQueries(Isa isa, const Search& search, int64_t first, int64_t count, const CodeView& view);

  const CodedQuery& operator[](int64_t q) const { return queries_[static_cast<size_t>(q)]; }

  int64_t tile_queries() const { return kernel_.tile_queries; }  // of a tile, at most
  int64_t tiles() const { return (count_ + kernel_.tile_queries - 1) / kernel_.tile_queries; }

  void add_block(int64_t block, BlockTerms& terms) const {
    terms.errors[terms.size] = view_.errors[static_cast<size_t>(block)];
    terms.inverse_scales[terms.size++] = items_.inverse_scales()[block];
  }

  // Thresholds [blocks.size] of a query for the items of the blocks whose scores reach `wanted`.
  void set_thresholds(int64_t q, float wanted, const BlockTerms& blocks,
                      int32_t* thresholds) const {
    const CodedQuery& query = (*this)[q];
    kernel_.thresholds({wanted - query.slack, query.error_share, 1 / query.scale, query.offset},
                       blocks.errors, blocks.inverse_scales, blocks.size, thresholds);
  }

  // How far the score of an item of the block may be from its estimate.
  float bound(int64_t q, int64_t block) const {
    return (*this)[q].slack + view_.errors[static_cast<size_t>(block)] * (*this)[q].error_share;
  }

  // What a unit of a product with an item of the block stands for.
  float unit(int64_t q, int64_t block) const { return (*this)[q].scale * items_.scales()[block]; }

 private:
  friend class CodeScans;

  int64_t stride() const { return view_.steps * kStepDims; }

  // Of the tile that begins there.
  int tile_size(int64_t first) const {
    return static_cast<int>(std::min<int64_t>(kernel_.tile_queries, count_ - first));
  }

  const CodeScanKernel& kernel_;
  const ItemCodes& items_;
  const CodeView& view_;
  int64_t count_;
  std::vector<int8_t> codes_;  // of tiles of queries, as the kernel reads them
  std::vector<CodedQuery> queries_;
};

// A thread's scans for some queries: against each block of some of their tiles, one after another.
// No other scans of the thread begin or end meanwhile.
class CodeScans {
 public:
  CodeScans(const CodedQueries& queries, int64_t first_tile, int64_t tiles)
      : queries_(queries), kernel_(queries.kernel_), first_tile_(first_tile) {
    const int64_t lines = queries.view_.steps * kStepLines;
    ahead_lines_ = kernel_.shares_ahead ? (lines + tiles - 1) / tiles : lines;
    if (kernel_.begin != nullptr) kernel_.begin(queries.view_.steps, queries.tile_size(0));
  }
  CodeScans(const CodeScans&) = delete;
  CodeScans& operator=(const CodeScans&) = delete;
  ~CodeScans() {
    if (kernel_.end != nullptr) kernel_.end();
  }

  // Scans a tile of queries against a block. `thresholds` are least products, offset included. A
  // block's tiles fetch the one `ahead` together; -1: none. Returns and writes what CodeScan does.
  uint32_t scan(int64_t tile_index, int64_t block, const int32_t* thresholds,
                int64_t threshold_stride, int64_t ahead, CodeHits& hits) const {
    const CodeView& view = queries_.view_;
    const int64_t first = tile_index * kernel_.tile_queries;
    CodeTile tile = {queries_.items_.block(view, block),
                     view.steps,
                     queries_.codes_.data() + first * queries_.stride(),
                     queries_.tile_size(first),
                     thresholds,
                     threshold_stride};
    const int64_t first_line = (tile_index - first_tile_) * ahead_lines_;
    if (ahead >= 0 && first_line < view.steps * kStepLines) {
      tile.ahead = queries_.items_.block(view, ahead) + first_line * kLineBytes;
      tile.ahead_lines = std::min(ahead_lines_, view.steps * kStepLines - first_line);
    }
    return kernel_.scan(tile, hits);
  }

 private:
  const CodedQueries& queries_;
  const CodeScanKernel& kernel_;
  int64_t first_tile_;
  int64_t ahead_lines_;  // fetched by a tile
};

}  // namespace recengine
