// The kernel that packs codes, compiled for each instruction set: plain loops over the items of a
// block, which compilers turn into vectors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "ops/item_codes_kernel.h"

namespace recengine {
namespace {

float largest_of(const BlockValues& block) {
  constexpr uint32_t kNoSign = 0x7fffffff;
  int32_t largest = 0;
  for (int64_t i = 0; i < kBlockItems; ++i) {
    const float* const item = block.values + i * block.width;
    for (int64_t d = 0; d < block.width; ++d) {
      uint32_t bits;
      std::memcpy(&bits, item + d, sizeof bits);
      largest = std::max(largest, static_cast<int32_t>(bits & kNoSign));
    }
  }
  float value;
  std::memcpy(&value, &largest, sizeof value);
  return value;
}

// Codes of one dimension, added to the items' words in its place; `left` are squares of what they
// leave out, `coarse` of what their high bits do.
void pack_dim(const float* values, float scale, int place, uint32_t* words, double* left,
              double* coarse) {
  const float inverse = 1 / scale;
  for (int64_t i = 0; i < kBlockItems; ++i) {
    constexpr auto kLargest = static_cast<int32_t>(kLargestCode);
    const auto rounded = static_cast<int32_t>(std::nearbyint(values[i] * inverse));
    const int32_t code = std::min(std::max(rounded, -kLargest), kLargest);
    const double rest = double{values[i]} - double{scale} * code;
    left[i] = rest * rest;
    const int32_t stored = code + kCodeOffset;
    const int32_t middle = (stored & kHighBits) + kCoarseMiddle - kCodeOffset;
    const double coarse_rest = double{values[i]} - double{scale} * middle;
    coarse[i] = coarse_rest * coarse_rest;
    words[i] |= static_cast<uint32_t>(stored) << 8 * place;
  }
}

void add(const double* some, double* sums) {
  for (int64_t i = 0; i < kBlockItems; ++i) sums[i] += some[i];
}

void add_squares(const float* values, double* sums) {
  for (int64_t i = 0; i < kBlockItems; ++i) sums[i] += double{values[i]} * double{values[i]};
}

void pack_codes(const BlockValues& block, float scale, uint8_t* codes, BlockSquares& squares) {
  std::memset(&squares, 0, sizeof squares);
  for (int64_t step = 0; step < block.width; step += kStepDims) {
    float values[kStepDims][kBlockItems];
    for (int64_t i = 0; i < kBlockItems; ++i) {
      const float* const item = block.values + i * block.width + step;
      for (int64_t d = 0; d < kStepDims; ++d) values[d][i] = item[d];
    }
    uint32_t words[kBlockItems] = {};
    for (int d = 0; d < kStepDims; ++d) {
      double left[kBlockItems];
      double coarse[kBlockItems];
      pack_dim(values[d], scale, d, words, left, coarse);
      const int64_t dim = step + d - block.first_dim;
      if (dim < 0) {
        if (step + d + 1 < block.views) add(left, squares.left[step + d + 1]);
        continue;
      }
      add_squares(values[d], squares.norms);
      if (dim < block.dim) add(coarse, squares.coarse);
      for (int64_t v = 0; v < block.views; ++v) {
        if (dim < block.view_dims[v]) add(left, squares.left[v]);
      }
    }
    std::memcpy(codes + step * kBlockItems, words, sizeof words);
  }
}

}  // namespace
}  // namespace recengine
