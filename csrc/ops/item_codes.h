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

constexpr int64_t kGroupItems = 16;  // of a block, whose step of four dimensions is a cache line
constexpr int64_t kBlockGroups = kBlockItems / kGroupItems;
constexpr int64_t kLineBytes = kGroupItems * kStepDims;
constexpr int64_t kStepBytes = kBlockItems * kStepDims;

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

// Whether split codes of the vectors are worth it: there are so many that a search reads them from
// memory, it reads all dimensions, and a coarse scan leaves few, as measured on a sample.
bool worth_splitting(const ItemVectors& vectors, const std::shared_ptr<const Rotation>& rotation,
                     const Context& context);

// Item vectors as 8-bit codes, from which a scan tells what may be among the best: an item is about
// scale * (code - kCodeOffset), and what that leaves out is at most as long as its block's error.
// Where partial scans pay the vectors are rotated first. One byte a dimension, four for the rests,
// and some bytes a block.
//
// Codes that are read from memory, not from caches, are split: the high four bits of all lie before
// the low ones, so that a coarse scan, which reads half of the bytes, tells for which few items the
// other half is needed. A code's halves are nibbles of lines of kLineBytes, each of a step of 16
// items:
//   high [blocks, steps, 2]: of groups 0 and 1 and of groups 2 and 3 of the block's items, the
//     first in the upper nibbles;
//   low [blocks, 4, steps / 2]: of each group, of two steps, the first in the lower nibbles; then,
//     where there is an odd step, its [2], as in `high`.
class ItemCodes {
 public:
  // Codes of `vectors`, turned by `rotation` if there is one; null when values are so large or so
  // small that the bounds' fp32 arithmetic would not hold. Throws InputError when a value is not
  // finite.
  static std::shared_ptr<const ItemCodes> pack(const ItemVectors& vectors,
                                               std::shared_ptr<const Rotation> rotation, bool split,
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

  int64_t steps() const { return steps_; }  // of a block, those of no view included

  bool split() const { return split_; }

  // [steps(), items of the block, kStepDims] where codes are not split.
  const uint8_t* block(int64_t block) const { return codes_ + 2 * block * half_bytes(); }
  // The halves where they are.
  const uint8_t* high(int64_t block) const { return codes_ + block * half_bytes(); }
  const uint8_t* low(int64_t block) const { return high(blocks_ + block); }

  // Writes the codes of a block as block() gives them, split or not.
  void copy_block(int64_t block, uint8_t* codes) const;

  // Of split codes, for each block the length of what the high four bits leave out, the low ones
  // taken to be in the middle; in the view of all dimensions.
  const std::vector<float>& coarse_errors() const { return coarse_errors_; }  // [blocks]
  float mean_coarse_error() const { return mean_coarse_error_; }
  float largest_coarse_error() const { return largest_coarse_error_; }

  const float* scales() const { return scales_.data(); }                  // [blocks]
  const float* inverse_scales() const { return inverse_scales_.data(); }  // [blocks]
  float largest_norm() const { return largest_norm_; }  // of the vectors, rounded up

 private:
  // What a block's codes stand for.
  struct BlockBounds {
    float scale;
    float largest_norm;                 // of its vectors, rounded up
    float errors[1 + kMostScans] = {};  // [views]
    float coarse_error = 0;
  };

  ItemCodes(const ItemVectors& vectors, std::shared_ptr<const Rotation> rotation, bool split);

  int64_t half_bytes() const { return steps_ * kStepBytes / 2; }  // of a block

  // Writes the codes of a block as block() gives them; false when its values cannot be coded.
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
  bool split_ = false;
  std::vector<CodeView> views_;  // that of all dimensions first
  const uint8_t* codes_ = nullptr;
  HugeArray<uint8_t> owned_;  // null when the codes are borrowed
  std::vector<float> scales_;
  std::vector<float> inverse_scales_;
  std::vector<float> norms_;  // the largest of each block
  std::vector<float> coarse_errors_;
  float largest_norm_ = 0;
  float mean_coarse_error_ = 0;
  float largest_coarse_error_ = 0;
};

}  // namespace recengine
