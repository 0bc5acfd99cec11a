#include "ops/gather_rows.h"

#include <vector>

#include "recengine/ops/embedding_bag.h"

namespace recengine {

void gather_rows(const Context& context, const EmbeddingTable& table, Span<const int64_t> rows,
                 Matrix<float> out) {
  static thread_local std::vector<int32_t> lengths;
  lengths.assign(static_cast<size_t>(rows.size), 1);
  const BagColumn column = {&table, Pooling::kSum, 0, 0};
  embedding_bag(context, {&column, 1}, {rows, {lengths.data(), rows.size, 1}}, out);
}

}  // namespace recengine
