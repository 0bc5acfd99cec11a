#pragma once

// What the host tells the kernel of embedding_bag_cuda().

#include <cuda_runtime_api.h>

#include <cstdint>

#include "recengine/table.h"

namespace recengine {

constexpr int kBagWarps = 8;    // of a block
constexpr int kRowsAtOnce = 4;  // rows that a sub-warp has on their way

// Of one launch: kernel parameters hold them. Those of 4 KiB cost every launch less than those of
// nearly 32, which CUDA and its driver have from 12.1 on.
constexpr int kFewColumns = 47;
constexpr int kManyColumnsVersion = 12010;
#if CUDART_VERSION >= 12010
constexpr int kMaxColumns = 380;
#else
constexpr int kMaxColumns = kFewColumns;
#endif

// A bag with pooling "none" counts as max_length bags of at most one row; a row of more than 32
// parts counts as several slices. A unit is a slice of a bag.
struct Column {
  const char* data;
  const float* scales;
  int64_t rows;
  int64_t row_bytes;
  int64_t out_offset;
  int32_t dim;
  int32_t slots;       // bags that a bag counts as
  int32_t max_length;  // with pooling "none"
  int32_t slices;
  int32_t scale_at;
  uint32_t index;  // among all columns of the call
  RowType row_type;
  bool mean;
  bool none;
  bool half_scale;
  bool scale_aligned;
  bool wide;  // rows and parts begin at multiples of 16 bytes
  uint8_t codes_at;
  uint8_t log_lanes;  // lanes that read a row
  uint8_t log_split;  // sub-warps of a warp that share a bag
  bool gather;        // bags of about one row
};

struct RowCacheView;

struct BagCall {
  const int64_t* rows;
  const int32_t* lengths;
  const float* weights;   // or null
  const int64_t* starts;  // of bags in rows, or null
  int64_t total;          // rows
  int64_t batch;
  float* out;
  int64_t out_cols;
  const RowCacheView* caches;  // of the launch's columns, or null
  int* bad_value;              // set when a length or a row is out of range, or null
  int32_t all_columns;         // of the call
  int32_t num_columns;         // of this launch
  int32_t log_warps;           // warps of a block that share a bag
};

// The columns of a launch, and the first block of each; call.num_columns of both.
void launch_embedding_bag(const BagCall& call, const uint32_t* first_block, const Column* columns,
                          int64_t blocks, cudaStream_t stream);

}  // namespace recengine
