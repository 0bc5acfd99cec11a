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
  float coarse_errors[kMost];
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
    if (items_.split()) {
      terms.coarse_errors[terms.size] = items_.coarse_errors()[static_cast<size_t>(block)];
    }
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
  friend class CoarseQuery;

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
  CodeScans(const CodedQueries& queries, int64_t first_tile, int64_t tiles);
  CodeScans(const CodeScans&) = delete;
  CodeScans& operator=(const CodeScans&) = delete;
  ~CodeScans();

  // Scans a tile of queries against a block. `thresholds` are least products, offset included. A
  // block's tiles put the split codes of the next one together, and fetch the one `ahead`; -1:
  // none. Returns and writes what CodeScan does.
  uint32_t scan(int64_t tile, int64_t block, const int32_t* thresholds, int64_t threshold_stride,
                int64_t next, int64_t ahead, CodeHits& hits);

 private:
  // A block's split codes, put together pair by pair of steps.
  struct Unpacked {
    uint8_t* codes = nullptr;
    int64_t block = -1;
    int64_t pairs = 0;  // so far
  };

  // The codes of a block, and a part of those of the next one.
  const uint8_t* unpacked(int64_t block, int64_t next, int64_t ahead);
  void unpack(Unpacked& into, int64_t block, int64_t pairs, int64_t ahead);
  CodesAhead lines_of(int64_t block, int64_t part) const;

  const CodedQueries& queries_;
  const CodeScanKernel& kernel_;
  int64_t first_tile_;
  int64_t pairs_;        // of a block's steps that are read
  int64_t part_pairs_;   // of them, put together by a tile
  int64_t part_lines_;   // of each half of a block, fetched by a tile
  bool unpack_fetches_;  // what is ahead, not the kernel
  Unpacked unpacked_[2];
  int scanned_ = 0;  // of them; the other is the next
};

inline CodesAhead CodeScans::lines_of(int64_t block, int64_t part) const {
  const int64_t lines = queries_.view_.steps * kStepBytes / 2 / kLineBytes;
  const int64_t first = part * part_lines_;
  if (block < 0 || first >= lines) return {};
  const ItemCodes& items = queries_.items_;
  const int64_t from = first * kLineBytes;
  const int64_t count = std::min(part_lines_, lines - first);
  if (items.split()) return {items.high(block) + from, items.low(block) + from, count};
  const uint8_t* const codes = items.block(block) + queries_.view_.first_step * kStepBytes + from;
  return {codes, codes + lines * kLineBytes, count};
}

inline void CodeScans::unpack(Unpacked& into, int64_t block, int64_t pairs, int64_t ahead) {
  if (into.block != block) {
    into.block = block;
    into.pairs = 0;
  }
  const int64_t begin = into.pairs;
  into.pairs = std::min(begin + pairs, pairs_);
  if (begin == into.pairs) return;
  const ItemCodes& items = queries_.items_;
  const uint8_t* const high = ahead < 0 ? nullptr : items.high(ahead);
  const uint8_t* const low = ahead < 0 ? nullptr : items.low(ahead);
  kernel_.unpack({items.high(block), items.low(block), items.steps(), begin, into.pairs, high, low},
                 into.codes + begin * 2 * kStepBytes);
}

inline const uint8_t* CodeScans::unpacked(int64_t block, int64_t next, int64_t ahead) {
  if (unpacked_[scanned_].block != block) {
    scanned_ = 1 - scanned_;
    unpack(unpacked_[scanned_], block, pairs_, -1);
  }
  // Before the scan, whose loads would otherwise wait for what was stored just before them.
  if (next >= 0) unpack(unpacked_[1 - scanned_], next, part_pairs_, ahead);
  return unpacked_[scanned_].codes;
}

inline uint32_t CodeScans::scan(int64_t tile_index, int64_t block, const int32_t* thresholds,
                                int64_t threshold_stride, int64_t next, int64_t ahead,
                                CodeHits& hits) {
  const ItemCodes& items = queries_.items_;
  const CodeView& view = queries_.view_;
  const uint8_t* const codes =
      items.split() ? unpacked(block, next, unpack_fetches_ ? ahead : -1) : items.block(block);
  const int64_t first = tile_index * kernel_.tile_queries;
  return kernel_.scan(
      {codes + view.first_step * kStepBytes, view.steps,
       queries_.codes_.data() + first * queries_.stride(), queries_.tile_size(first), thresholds,
       threshold_stride, lines_of(unpack_fetches_ ? -1 : ahead, tile_index - first_tile_)},
      hits);
}

// The codes of one query as coarse scans read them.
class CoarseQuery {
 public:
  CoarseQuery(const CodedQueries& queries, int64_t q);

  // Thresholds [blocks.size] for what coarse scans find: see CodedQueries::set_thresholds().
  void set_thresholds(float wanted, const BlockTerms& blocks, int32_t* thresholds) const;

  // Reads the high bits of a block and fetches those of the one `ahead`; -1: none. Bit i: item i
  // reaches the threshold; then `products` [kBlockItems] are written.
  uint64_t scan(int64_t block, int32_t threshold, int64_t ahead, int32_t* products) const;

  // What the low bits of a group of a block's items add to the products [kGroupItems]. Bit i: item
  // i of the group reaches the threshold.
  uint32_t scan_low(int64_t block, int64_t group, int32_t threshold, int32_t* products) const;
  void fetch_low(int64_t block, int64_t group) const;

 private:
  const uint8_t* low(int64_t block, int64_t group) const;
  const uint8_t* last(int64_t block, int64_t group) const;

  const CodeScanKernel& kernel_;
  const ItemCodes& items_;
  const CodeView& view_;
  const CodedQuery& query_;
  std::vector<int8_t> codes_;  // [steps of a block, kStepDims], zeros before the view's first
};

}  // namespace recengine
