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

// Rows of fp16 as fp32.
void convert(Matrix<const uint16_t> halves, Span<const int64_t> rows, Isa isa, float* out) {
  const EmbeddingTable table = plain_table("item vectors", halves.data, halves.rows,
                                           static_cast<int32_t>(halves.cols), RowType::kFloat16);
  Context alone;
  alone.isa = isa;
  gather_rows(alone, table, rows, {out, rows.size, halves.cols});
}

// Memory of this thread, until the next call.
float* values_for(int64_t count) {
  static thread_local std::vector<float> values;
  values.resize(static_cast<size_t>(count));
  return values.data();
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
  float* const values = values_for(count * vectors.dim());
  convert(vectors.halves, rows, isa, values);
  return {values, count, vectors.dim()};
}

Matrix<const float> load_rows(const ItemVectors& vectors, Span<const uint32_t> rows, int64_t count,
                              Isa isa) {
  float* const values = values_for(count * vectors.dim());
  copy_rows(vectors, rows, count, isa, values);
  return {values, count, vectors.dim()};
}

void copy_rows(const ItemVectors& vectors, Span<const uint32_t> rows, int64_t count, Isa isa,
               float* out) {
  if (vectors.is_half()) {
    static thread_local std::vector<int64_t> some;
    some.assign(rows.begin(), rows.begin() + count);
    convert(vectors.halves, some, isa, out);
    return;
  }
  constexpr int64_t kAhead = 64;
  const int64_t dim = vectors.dim();
  for (int64_t i = 0; i < count; ++i) {
    prefetch_rows<2>(vectors.floats, rows, i + kAhead, 1);
    std::copy_n(vectors.floats.row(rows[i]), dim, out + i * dim);
  }
}

Matrix<const float> spread_rows(const ItemVectors& vectors, int64_t count,
                                std::vector<float>& memory) {
  const int64_t dim = vectors.dim();
  memory.resize(static_cast<size_t>(count * dim));
  for (int64_t i = 0; i < count; ++i) {
    const float* row = load_rows(vectors, i * vectors.rows() / count, 1, default_isa()).data;
    std::copy(row, row + dim, memory.data() + i * dim);
  }
  return {memory.data(), count, dim};
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
