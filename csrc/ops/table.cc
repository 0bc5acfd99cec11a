#include "recengine/table.h"

#include <utility>

#include "recengine/error.h"

namespace recengine {
namespace {

int64_t code_bytes(RowType type, int32_t dim) {
  switch (type) {
    case RowType::kFloat32:
      return int64_t{4} * dim;
    case RowType::kFloat16:
    case RowType::kBfloat16:
      return int64_t{2} * dim;
    case RowType::kInt8:
    case RowType::kFusedInt8:
      return dim;
    case RowType::kFusedInt4:
      return (int64_t{dim} + 1) / 2;
  }
  return 0;
}

bool has_half_scale(RowType type, FusedLayout layout) {
  return layout == FusedLayout::kTbe || type == RowType::kFusedInt4;
}

bool is_fused(RowType type) { return type == RowType::kFusedInt8 || type == RowType::kFusedInt4; }

}  // namespace

int64_t packed_row_bytes(RowType type, int32_t dim, FusedLayout layout) {
  const int64_t scale_and_bias = !is_fused(type) ? 0 : has_half_scale(type, layout) ? 4 : 8;
  return code_bytes(type, dim) + scale_and_bias;
}

EmbeddingTable plain_table(std::string name, const void* data, int64_t rows, int32_t dim,
                           RowType type, const float* scales) {
  EmbeddingTable table;
  table.name = std::move(name);
  table.data = data;
  table.rows = rows;
  table.dim = dim;
  table.row_type = type;
  table.row_bytes = packed_row_bytes(type, dim);
  table.scales = scales;
  return table;
}

EmbeddingTable fused_table(std::string name, const void* data, int64_t rows, int32_t dim,
                           RowType type, FusedLayout layout, int64_t row_bytes) {
  const int64_t packed = packed_row_bytes(type, dim, layout);
  if (row_bytes < packed) {
    throw InputError("[embedding_table] \"" + name + "\": expected at least " +
                     std::to_string(packed) + " bytes a row for dim " + std::to_string(dim) +
                     ", found " + std::to_string(row_bytes));
  }
  EmbeddingTable table = plain_table(std::move(name), data, rows, dim, type);
  table.row_bytes = row_bytes;
  table.half_scale = has_half_scale(type, layout);
  const bool scale_first = layout == FusedLayout::kTbe;
  table.codes_at = scale_first ? 4 : 0;
  table.scale_at = scale_first ? 0 : static_cast<int32_t>(code_bytes(type, dim));
  return table;
}

}  // namespace recengine
