#pragma once

#include <cstdint>

#include "ops/rotation.h"

namespace recengine {

constexpr int32_t kCodeOffset = 128;
constexpr float kLargestCode = 127;
constexpr int32_t kHighBits = 0xf0;   // of a code, that a coarse scan reads
constexpr int32_t kCoarseMiddle = 8;  // what it takes the others to be

// The values of a block of items as they are coded.
struct BlockValues {
  const float* values;       // [kBlockItems, width]
  int64_t width;             // a multiple of kStepDims
  int64_t first_dim;         // before it are lengths of rests, that of view v in place v - 1
  int64_t dim;               // of the vectors; behind them are zeros
  int64_t views;             // of which the first reads all dimensions
  const int64_t* view_dims;  // [views], that each reads
};

// Of each item, added up dimension by dimension: the same on every instruction set.
struct BlockSquares {
  double norms[kBlockItems];
  double left[1 + kMostScans][kBlockItems];  // of what codes leave out, in each view
  double coarse[kBlockItems];                // of what their high bits leave out, of all dimensions
};

struct PackKernel {
  // The largest absolute value; infinite or NaN where a value is.
  float (*largest)(const BlockValues& block);
  // Writes codes [width / kStepDims, kBlockItems, kStepDims] of the values.
  void (*pack)(const BlockValues& block, float scale, uint8_t* codes, BlockSquares& squares);
};

extern const PackKernel kPackPortable;
extern const PackKernel kPackAvx2;
extern const PackKernel kPackAvx512;

}  // namespace recengine
