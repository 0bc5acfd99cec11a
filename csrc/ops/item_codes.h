#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "recengine/tensor.h"

namespace recengine {

class ThreadPool;

constexpr int64_t kBlockItems = 64;  // share a scale and an error, and are scored together
constexpr int64_t kStepDims = 4;     // multiplied by one instruction
constexpr int32_t kCodeOffset = 128;

// Item vectors as 8-bit codes, from which a scan tells what may be among the best: an item is about
// scale * (code - kCodeOffset), and what that leaves out is at most as long as its block's error.
// One byte a dimension and 12 a block.
class ItemCodes {
 public:
  // Codes of `vectors`, on the pool's threads when there is one; null when values are so large or
  // so small that the bounds' fp32 arithmetic would not hold. Throws InputError when a value is not
  // finite.
  static std::shared_ptr<const ItemCodes> pack(Matrix<const float> vectors, ThreadPool* pool);

  int64_t blocks() const { return blocks_; }
  int64_t steps() const { return steps_; }  // ceil(dim / kStepDims)

  // [steps, items of the block, kStepDims]
  const uint8_t* block(int64_t block) const {
    return codes_.get() + block * steps_ * kStepDims * kBlockItems;
  }

  const float* scales() const { return scales_.data(); }                  // [blocks]
  const float* inverse_scales() const { return inverse_scales_.data(); }  // [blocks]
  const float* errors() const { return errors_.data(); }  // [blocks], lengths, rounded up
  float largest_error() const { return largest_error_; }
  float largest_norm() const { return largest_norm_; }  // of the vectors, rounded up

 private:
  struct Free {
    void operator()(uint8_t* memory) const;
  };

  // Writes a block and its largest norm, rounded up; false when its values cannot be coded.
  bool pack_block(Matrix<const float> vectors, int64_t block, float& largest_norm);

  int64_t blocks_ = 0;
  int64_t steps_ = 0;
  std::unique_ptr<uint8_t[], Free> codes_;
  std::vector<float> scales_;
  std::vector<float> inverse_scales_;
  std::vector<float> errors_;
  float largest_error_ = 0;
  float largest_norm_ = 0;
};

}  // namespace recengine
