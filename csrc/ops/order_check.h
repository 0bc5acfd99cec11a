#pragma once

#include <cstdint>

#include "recengine/tensor.h"

namespace recengine {

// What order() throws for shapes that disagree, and for the score of a real candidate that is not
// finite, of which it names the first.
void check_order_shapes(Matrix<const int64_t> candidate_ids, Matrix<const float> scores,
                        Matrix<int64_t> out_ids, Matrix<float> out_scores);
void check_order_scores(Matrix<const int64_t> candidate_ids, Matrix<const float> scores);

}  // namespace recengine
