#pragma once

#include <cstdint>
#include <vector>

#include "recengine/context.h"
#include "recengine/item_index.h"
#include "recengine/tensor.h"

namespace recengine {

// Rows [first, first + count) in fp32: where they are stored, or converted into memory of this
// thread, which lasts until its next call.
Matrix<const float> load_rows(const ItemVectors& vectors, int64_t first, int64_t count, Isa isa);

// The first `count` of these rows in fp32, in memory of this thread that lasts until its next call;
// those behind them are on their way then.
Matrix<const float> load_rows(const ItemVectors& vectors, Span<const uint32_t> rows, int64_t count,
                              Isa isa);

// The same, into `out` [count, dim].
void copy_rows(const ItemVectors& vectors, Span<const uint32_t> rows, int64_t count, Isa isa,
               float* out);

// Evenly spread ones, into `memory`.
Matrix<const float> spread_rows(const ItemVectors& vectors, int64_t count,
                                std::vector<float>& memory);

// Scores, as cosine_topk() defines them, of single rows against one query (padded with zeros to
// kScoreLanes).
void score_rows(const ItemVectors& vectors, Span<const uint32_t> rows, const float* query,
                float* scores, Isa isa);

}  // namespace recengine
