#include "engine/assets.h"

#include <algorithm>
#include <cstring>

#include "engine/row_checks.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr uint16_t kHalfExponent = 0x7c00;
constexpr uint16_t kBfloatExponent = 0x7f80;

bool all_finite(const uint16_t* values, int64_t size, uint16_t exponent) {
  uint16_t bad = 0;
  for (int64_t i = 0; i < size; ++i) {
    bad |= static_cast<uint16_t>((values[i] & exponent) == exponent);
  }
  return bad == 0;
}

void require_finite(ThreadPool& pool, const EmbeddingTable& table) {
  const std::string what = "table " + table.name;
  const int64_t dim = table.dim;
  const auto* bytes = static_cast<const char*>(table.data);
  const auto values = [&](int64_t row) {
    return reinterpret_cast<const uint16_t*>(bytes + row * table.row_bytes);
  };
  switch (table.row_type) {
    case RowType::kFloat32:
      return require_finite(pool, what, {static_cast<const float*>(table.data), table.rows, dim});
    case RowType::kFloat16:
      return require_finite_rows(pool, what, table.rows, [&](int64_t row) {
        return all_finite(values(row), dim, kHalfExponent);
      });
    case RowType::kBfloat16:
      return require_finite_rows(pool, what, table.rows, [&](int64_t row) {
        return all_finite(values(row), dim, kBfloatExponent);
      });
    case RowType::kInt8:
      return require_finite(pool, what + ": scales", {table.scales, table.rows, 1});
    case RowType::kFusedInt8:
    case RowType::kFusedInt4:
      return require_finite_rows(pool, what + ": scale and bias", table.rows, [&](int64_t row) {
        uint16_t scale_and_bias[2];
        std::memcpy(scale_and_bias, bytes + row * table.row_bytes, sizeof scale_and_bias);
        return all_finite(scale_and_bias, 2, kHalfExponent);
      });
  }
}

// A row of a slot goes into a table unchecked later.
void require_slots(const std::string& what, Span<const int32_t> rows, int64_t count) {
  int64_t taken = 0;
  for (int64_t slot = 0; slot < rows.size; ++slot) {
    if (rows[slot] == -1) continue;
    if (rows[slot] < 1 || rows[slot] > count) {
      throw BundleError(what + ": slot " + std::to_string(slot) + ": expected row -1 or 1 to " +
                        std::to_string(count) + ", found " + std::to_string(rows[slot]));
    }
    ++taken;
  }
  if (taken != count) {
    throw BundleError(what + ": expected " + std::to_string(count) + " keys in the slots, found " +
                      std::to_string(taken));
  }
}

Vocabulary load_vocabulary(const std::string& name, const VocabularySpec& spec,
                           BundleFiles& files) {
  if (!spec.hashed) return Vocabulary::range(spec.first, spec.count);
  const auto keys = files.tensors(spec.keys->file).vector<int64_t>(spec.keys->tensor);
  const auto rows = files.tensors(spec.rows->file).vector<int32_t>(spec.rows->tensor, keys.size);
  require_slots("vocabulary " + name, rows, spec.count);
  return Vocabulary::hashed(keys, rows, spec.count);
}

// Of the tensor that holds the rows of a table.
DType stored_type(RowType type) {
  switch (type) {
    case RowType::kFloat32:
      return DType::kFloat32;
    case RowType::kFloat16:
      return DType::kFloat16;
    case RowType::kBfloat16:
      return DType::kUint16;
    case RowType::kInt8:
      return DType::kInt8;
    case RowType::kFusedInt8:
    case RowType::kFusedInt4:
      return DType::kUint8;
  }
  return DType::kOther;
}

EmbeddingTable map_table(const std::string& name, const TableSpec& spec, BundleFiles& files) {
  const bool fused = spec.row_type == RowType::kFusedInt4;
  const int64_t row_bytes = packed_row_bytes(spec.row_type, spec.dim);
  const void* data = files.tensors(spec.data.file)
                         .data(spec.data.tensor, stored_type(spec.row_type),
                               {spec.rows, fused ? row_bytes : spec.dim});
  if (fused) {
    return fused_table(name, data, spec.rows, spec.dim, spec.row_type, FusedLayout::kTbe,
                       row_bytes);
  }
  const float* scales = nullptr;
  if (spec.scales) {
    scales = files.tensors(spec.scales->file).vector<float>(spec.scales->tensor, spec.rows).data;
  }
  return plain_table(name, data, spec.rows, spec.dim, spec.row_type, scales);
}

EmbeddingTable load_table(const std::string& name, const TableSpec& spec, BundleFiles& files,
                          ThreadPool& pool) {
  EmbeddingTable table = map_table(name, spec, files);
  require_finite(pool, table);
  return table;
}

}  // namespace

Assets::Assets(const Manifest& manifest, BundleFiles& files, ThreadPool& pool) {
  for (const auto& [name, spec] : manifest.vocabularies) {
    vocabularies_.emplace(name, load_vocabulary(name, spec, files));
  }
  for (const auto& [name, spec] : manifest.tables) {
    tables_.emplace(name, load_table(name, spec, files, pool));
  }
}

}  // namespace recengine
