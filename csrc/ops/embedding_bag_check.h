#pragma once

#include "recengine/ops/embedding_bag.h"

namespace recengine {

// What embedding_bag() throws for shapes that disagree and an `out` that is read as well, and for
// lengths and rows that are out of range, of which it names the first.
void check_bag_shapes(Span<const BagColumn> columns, const BagInput& input, Matrix<float> out);
void check_bag_values(Span<const BagColumn> columns, const BagInput& input);

}  // namespace recengine
