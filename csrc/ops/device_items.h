#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>

#include "cuda/mma.h"
#include "ops/rotation.h"

namespace recengine::cuda {

// Codes lie as a warp's lanes hold them for mma_s8(), items being the rows of a tile:
// [blocks, steps of 32 dimensions, tiles of 16 items, lanes] of 16 bytes.
constexpr int kItemTiles = static_cast<int>(kBlockItems) / kMmaRows;
constexpr int kTileLoads = kMmaRows * kMmaBytes / 16;  // one a lane
constexpr int kStepLoads = kItemTiles * kTileLoads;

// Of queries, whose codes a block of threads keeps in shared memory.
constexpr int64_t kMostMmaDims = 4096;

// With an item about code / inverse_scale, what that leaves out is at most as long as `error`.
struct alignas(8) BlockBound {
  float inverse_scale;
  float error;
};

// What kernels read of an index.
struct ItemsView {
  const float* units;        // [rows, dim]
  const uint4* codes;        // null: every item is scored
  const BlockBound* bounds;  // [blocks]
  const float* axes;         // [dim, dim], what codes were rotated by; null: nothing
  int64_t rows;
  int64_t blocks;
  int32_t dim;
  int32_t steps;  // of kMmaBytes dimensions
  float largest_norm;
  float largest_error;
  double turned;  // error of the rotation
};

struct DeviceItems {
  ItemsView view{};
  std::shared_ptr<void> units;
  std::shared_ptr<void> codes;
  std::shared_ptr<void> bounds;
  std::shared_ptr<void> axes;
  int multiprocessors = 0;
  bool has_wgmma = false;  // as its code in this build
};

}  // namespace recengine::cuda
