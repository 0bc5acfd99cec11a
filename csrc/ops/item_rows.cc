#include "ops/item_rows.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu/isa.h"
#include "ops/cosine_topk_kernel.h"
#include "ops/gather_rows.h"
#include "recengine/table.h"

namespace recengine {
namespace {

constexpr int64_t kConvertedTogether = 64;  // stay in the caches until they are scored

// Rows of fp16 in fp32, in memory of this thread.
Matrix<const float> convert(Matrix<const uint16_t> halves, const std::vector<int64_t>& rows,
                            Isa isa) {
  static thread_local std::vector<float> values;
  const auto count = static_cast<int64_t>(rows.size());
  const auto dim = static_cast<int32_t>(halves.cols);
  const EmbeddingTable table =
      plain_table("item vectors", halves.data, halves.rows, dim, RowType::kFloat16);
  values.resize(static_cast<size_t>(count * halves.cols));
  const Matrix<float> out(values.data(), count, halves.cols);
  Context alone;
  alone.isa = isa;
  gather_rows(alone, table, rows, out);
  return out;
}

void gather(Matrix<const float> vectors, Span<const uint32_t> rows, const float* query,
            float* scores, Isa isa) {
  pick_kernel(isa, cosine_gather_portable, cosine_gather_avx2, cosine_gather_avx512,
              cosine_gather_avx512, cosine_gather_avx512)(vectors, rows, query, scores);
}

}  // namespace

Matrix<const float> load_rows(const ItemVectors& vectors, int64_t first, int64_t count, Isa isa) {
  if (!vectors.is_half()) return {vectors.floats.row(first), count, vectors.dim()};
  static thread_local std::vector<int64_t> rows;
  rows.resize(static_cast<size_t>(count));
  std::iota(rows.begin(), rows.end(), first);
  return convert(vectors.halves, rows, isa);
}

Matrix<const float> load_rows(const ItemVectors& vectors, Span<const uint32_t> rows, int64_t count,
                              Isa isa) {
  if (vectors.is_half()) {
    static thread_local std::vector<int64_t> some;
    some.assign(rows.begin(), rows.begin() + count);
    return convert(vectors.halves, some, isa);
  }
  constexpr int64_t kAhead = 64;
  static thread_local std::vector<float> values;
  const int64_t dim = vectors.dim();
  values.resize(static_cast<size_t>(count * dim));
  for (int64_t i = 0; i < count; ++i) {
    prefetch_rows(vectors.floats, rows, i + kAhead, 1);
    std::copy_n(vectors.floats.row(rows[i]), dim, values.data() + i * dim);
  }
  return {values.data(), count, dim};
}

void score_rows(const ItemVectors& vectors, Span<const uint32_t> rows, const float* query,
                float* scores, Isa isa) {
  if (!vectors.is_half()) {
    gather(vectors.floats, rows, query, scores, isa);
    return;
  }
  static thread_local std::vector<uint32_t> in_order;
  for (int64_t begin = 0; begin < rows.size; begin += kConvertedTogether) {
    const int64_t count = std::min(kConvertedTogether, rows.size - begin);
    in_order.resize(static_cast<size_t>(count));
    std::iota(in_order.begin(), in_order.end(), 0u);
    gather(load_rows(vectors, {rows.data + begin, count}, count, isa), in_order, query,
           scores + begin, isa);
  }
}

}  // namespace recengine
