#pragma once

#include <cstdint>

#include "recengine/ops/cosine_topk.h"
#include "recengine/tensor.h"

namespace recengine {

// What every search on items [rows, dim] checks first; throws InputError.
void check_topk_shapes(int64_t rows, int64_t dim, const TopKQuery& query, Matrix<int64_t> out_rows,
                       Matrix<float> out_scores);

// Throws InputError naming the first value that is out of range, if there is one: a query that is
// not finite, a length, or an excluded row.
void check_topk_values(int64_t rows, const TopKQuery& query);

}  // namespace recengine
