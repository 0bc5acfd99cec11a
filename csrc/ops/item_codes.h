#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/huge_pages.h"
#include "ops/item_codes_kernel.h"
#include "ops/rotation.h"
#include "recengine/item_index.h"

namespace recengine {

constexpr float kSmallestValue = 1e-15f;  // of a block's largest: far from what fp32 loses
constexpr float kLargestValue = 1e15f;
constexpr int64_t kMostCodedDims = 1 << 14;  // sums over more could overflow

// What a scan reads of every block. Partial scans read the first steps: one with the lengths of the
// items' rests, then dimensions. That of all dimensions leaves the rests out.
struct CodeView {
  const PartialScan* partial = nullptr;  // null: all dimensions
  int64_t rest_slot = 0;                 // of the rests' step, for a partial scan
  int64_t first_step = 0;
  int64_t steps = 0;
  std::vector<float> errors;  // [blocks], lengths of what codes leave out, rounded up
  float largest_error = 0;
};

// Item vectors as 8-bit codes, from which a scan tells what may be among the best: an item is about
// scale * (code - kCodeOffset), and what that leaves out is at most as long as its block's error.
// Where partial scans pay the vectors are rotated first. One byte a dimension, four for the rests,
// and some bytes a block.
class ItemCodes {
 public:
  // Codes of `vectors`, turned by `rotation` if there is one; null when values are so large or so
  // small that the bounds' fp32 arithmetic would not hold. Throws InputError when a value is not
  // finite.
  static std::shared_ptr<const ItemCodes> pack(const ItemVectors& vectors,
                                               std::shared_ptr<const Rotation> rotation,
                                               const Context& context);

  // Those that store() gave; see ItemIndex::with_codes().
  static std::shared_ptr<const ItemCodes> load(const ItemVectors& vectors,
                                               const StoredCodes& stored);

  StoredCodes store() const;

  int64_t blocks() const { return blocks_; }
  const Rotation* rotation() const { return rotation_.get(); }  // null: codes of the vectors

  // The view that costs least for so many queries; see Rotation::best().
  const CodeView& view(int64_t queries, double product_cost) const;

  // The view of all dimensions.
  const CodeView& full_view() const { return views_.front(); }

  // What a view reads of a block: [steps, items of the block, kStepDims].
  const uint8_t* block(const CodeView& view, int64_t block) const {
    return codes_ + block * block_bytes() + view.first_step * kStepDims * kBlockItems;
  }

  const float* scales() const { return scales_.data(); }                  // [blocks]
  const float* inverse_scales() const { return inverse_scales_.data(); }  // [blocks]
  float largest_norm() const { return largest_norm_; }  // of the vectors, rounded up

 private:
  // What a block's codes stand for.
  struct BlockBounds {
    float scale;
    float largest_norm;                 // of its vectors, rounded up
    float errors[1 + kMostScans] = {};  // [views]
  };

  ItemCodes(const ItemVectors& vectors, std::shared_ptr<const Rotation> rotation);

  int64_t block_bytes() const { return steps_ * kStepDims * kBlockItems; }

  // Writes the codes of a block; false when its values cannot be coded.
  bool pack_block(Isa isa, const ItemVectors& vectors, int64_t block, uint8_t* codes,
                  BlockBounds& bounds) const;

  BlockValues coded_values(Isa isa, const ItemVectors& vectors, int64_t block,
                           int64_t* view_dims) const;

  BlockBounds bounds_of(int64_t block) const;
  void set_bounds(int64_t block, const BlockBounds& bounds);
  void find_largest();

  // Throws InputError.
  void require_bounds() const;
  void require_blocks(const ItemVectors& vectors) const;

  int64_t blocks_ = 0;
  int64_t steps_ = 0;  // of a block
  std::shared_ptr<const Rotation> rotation_;
  std::vector<CodeView> views_;  // that of all dimensions first
  const uint8_t* codes_ = nullptr;
  HugeArray<uint8_t> owned_;  // null when the codes are borrowed
  std::vector<float> scales_;
  std::vector<float> inverse_scales_;
  std::vector<float> norms_;  // the largest of each block
  float largest_norm_ = 0;
};

}  // namespace recengine
