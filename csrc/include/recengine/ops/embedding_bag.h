#pragma once

#include <cstdint>

#include "recengine/context.h"
#include "recengine/cuda.h"
#include "recengine/table.h"
#include "recengine/tensor.h"

namespace recengine {

enum class Pooling : uint8_t { kSum, kMean, kNone };

// One column of bags: bag (b, c) reads rows of `table` and writes out[b, offset : offset + width],
// where width = dim, or max_length * dim for kNone (the sequence itself, zeros behind its end).
struct BagColumn {
  const EmbeddingTable* table = nullptr;
  Pooling pooling = Pooling::kSum;
  int32_t max_length = 0;  // kNone: longest sequence; on a GPU else: about the longest bag, or 0
  int64_t offset = 0;
};

// Bags of all columns and users, packed in the order of the wire: user by user, column by column.
struct BagInput {
  Span<const int64_t> rows;       // table rows, concatenated
  Matrix<const int32_t> lengths;  // [batch, columns]
  const float* weights =
      nullptr;  // one per row id, or null for weight 1; kMean divides by the count
};

// Fused lookup and pooling over many tables in one call. Empty bags give zeros; every element of
// a column's slice is written once, elements between slices are left alone.
// Throws InputError naming table, position and value when a row is outside its table, and when
// lengths are negative, do not sum to rows.size, or exceed max_length of a kNone column, or when
// `out` is memory that the call reads. Allocates nothing.
void embedding_bag(const Context& context, Span<const BagColumn> columns, const BagInput& input,
                   Matrix<float> out);

// The same over arrays of a GPU and views of DeviceTables. Products are not rounded before they are
// added, and the rows of a bag may be added in several sums that are added last; the same call
// gives the same bits on the same GPU.
void embedding_bag_cuda(const CudaContext& context, Span<const BagColumn> columns,
                        const BagInput& input, Matrix<float> out);

}  // namespace recengine
