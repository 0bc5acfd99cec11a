#pragma once

#include <cstdint>

#include "recengine/cuda.h"
#include "recengine/tensor.h"

namespace recengine {

// Sorts candidates [batch, n] by score, best first, ties by earlier position, and writes the first
// K = out_ids.cols. Candidates of id -1 are dropped; missing slots hold -1 and -inf.
// Throws InputError naming row and column when the score of a real candidate is not finite.
void order(Matrix<const int64_t> candidate_ids, Matrix<const float> scores, Matrix<int64_t> out_ids,
           Matrix<float> out_scores);

// The same over arrays of a GPU; the smaller of n and 2 K is at most 2^29.
void order_cuda(const CudaContext& context, Matrix<const int64_t> candidate_ids,
                Matrix<const float> scores, Matrix<int64_t> out_ids, Matrix<float> out_scores);

}  // namespace recengine
