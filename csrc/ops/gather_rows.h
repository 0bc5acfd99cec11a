#pragma once

#include <cstdint>

#include "recengine/context.h"
#include "recengine/table.h"
#include "recengine/tensor.h"

namespace recengine {

// out[i] is row rows[i] of the table in fp32: bags of one row each, because embedding_bag() has the
// prefetches, the threads, and the instructions that convert. Throws what it throws.
void gather_rows(const Context& context, const EmbeddingTable& table, Span<const int64_t> rows,
                 Matrix<float> out);

}  // namespace recengine
