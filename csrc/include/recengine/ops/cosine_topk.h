#pragma once

#include <cstdint>

#include "recengine/context.h"
#include "recengine/cuda.h"
#include "recengine/device_item_index.h"
#include "recengine/item_index.h"
#include "recengine/tensor.h"

namespace recengine {

// What one batched search asks for.
struct TopKQuery {
  Matrix<const float> queries;          // [batch, dim], any length; normalised inside
  Span<const int64_t> exclude_rows;     // ragged, concatenated query by query; may repeat
  Span<const int32_t> exclude_lengths;  // [batch], or empty for none
  // [ceil(rows / 64)], bit r % 64 of word r / 64; without data: all.
  Span<const uint64_t> allow_bitmap = {};
};

// What shows that one query's answer is exact.
struct TopKCertificate {
  float threshold;  // at least K items reach it; what certainly does not was left out
  float bound;      // how far the estimates that items were left out by may be from their scores
  // Items that their estimates did not rule out in the end, and all whose score was computed on the
  // way; in a search without codes both are all that were looked at.
  int64_t survivors;
  int64_t scored;
};

// The exact K best rows of each query by cosine, best first, ties by lower row.
// K = out_rows.cols; slots beyond what is allowed hold row -1 and score -inf.
//
// The score of (query, item) is fixed to the bit on every instruction set: both are normalised
// with an fp64 norm and rounded to fp32, products are rounded to fp32 and added into 16 lanes
// (lane j takes dimensions j, j + 16, ...), and the lanes are added as a tree 8, 4, 2, 1.
//
// `certificates`, when not null, is [batch] and is filled in.
//
// Throws InputError when shapes disagree, that of the bitmap included, a query is not finite
// (naming its row) or an excluded row is outside the index.
void cosine_topk(const Context& context, const ItemIndex& index, const TopKQuery& query,
                 Matrix<int64_t> out_rows, Matrix<float> out_scores,
                 TopKCertificate* certificates = nullptr);

// The same answer to the bit on a GPU: arrays, certificates included, are memory of the context's
// device, where the index is. What is scored may differ from a search on the CPU. All is decided on
// the device, so that the work can be captured in a CUDA graph; memory to work in is of the
// context's scratch or taken in the order of the stream, and depends on shapes alone.
//
// Without the context's check a query that is not finite is answered with padding, and its
// certificate's `scored` is -1; an excluded row outside the index excludes nothing, and lengths are
// cut where the rows end.
void cosine_topk_cuda(const CudaContext& context, const DeviceItemIndex& index,
                      const TopKQuery& query, Matrix<int64_t> out_rows, Matrix<float> out_scores,
                      TopKCertificate* certificates = nullptr);

// An allow bitmap on a GPU from a mask there: words [ceil(rows / 64)] of mask [rows], of which 0 is
// not allowed.
void pack_bitmap_cuda(const CudaContext& context, Span<const uint8_t> mask, Span<uint64_t> words);

}  // namespace recengine
