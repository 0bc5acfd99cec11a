#include "engine/assets.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/thread_pool.h"
#include "ops/item_rows.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr int64_t kRowsPerTask = 4096;
constexpr double kNormTolerance = 1e-3;

// Calls body(begin, end) for blocks of rows, on the pool.
template <typename Body>
void for_each_block(ThreadPool& pool, int64_t rows, const Body& body) {
  pool.parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t block) {
    const int64_t begin = block * kRowsPerTask;
    body(begin, std::min(begin + kRowsPerTask, rows));
  });
}

// True when all exponents are below the one that means NaN or infinity.
bool all_finite(const float* values, int64_t size) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < size; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    bad |= static_cast<uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
  }
  return bad == 0;
}

constexpr uint16_t kHalfExponent = 0x7c00;
constexpr uint16_t kBfloatExponent = 0x7f80;

bool all_finite(const uint16_t* values, int64_t size, uint16_t exponent) {
  uint16_t bad = 0;
  for (int64_t i = 0; i < size; ++i) {
    bad |= static_cast<uint16_t>((values[i] & exponent) == exponent);
  }
  return bad == 0;
}

// Throws BundleError naming the first row of a block for which finite(row) is false.
template <typename Finite>
void require_finite_rows(ThreadPool& pool, const std::string& what, int64_t rows,
                         const Finite& finite) {
  for_each_block(pool, rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (!finite(row)) {
        throw BundleError(what + ": row " + std::to_string(row) +
                          ": expected finite values, found NaN or infinity");
      }
    }
  });
}

void require_finite(ThreadPool& pool, const std::string& what, Matrix<const float> values) {
  require_finite_rows(pool, what, values.rows,
                      [&](int64_t row) { return all_finite(values.row(row), values.cols); });
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

void require_unit_rows(ThreadPool& pool, const ItemVectors& vectors) {
  for_each_block(pool, vectors.rows(), [&](int64_t begin, int64_t end) {
    const Matrix<const float> rows = load_rows(vectors, begin, end - begin, default_isa());
    for (int64_t row = begin; row < end; ++row) {
      const float* const vector = rows.row(row - begin);
      double square = 0;
      for (int64_t d = 0; d < rows.cols; ++d) square += static_cast<double>(vector[d]) * vector[d];
      if (!std::isfinite(square)) {
        throw BundleError("index: row " + std::to_string(row) +
                          ": expected finite values, found NaN or infinity");
      }
      if (square != 0 && std::abs(std::sqrt(square) - 1) > kNormTolerance) {
        throw BundleError("index: row " + std::to_string(row) + ": expected norm 1 or 0, found " +
                          std::to_string(std::sqrt(square)));
      }
    }
  });
}

ItemVectors map_vectors(const IndexSpec& spec, BundleFiles& files) {
  const Safetensors& tensors = files.tensors(spec.vectors.file);
  const std::string& name = spec.vectors.tensor;
  if (tensors.dtype(name) != DType::kFloat16) {
    return {tensors.matrix<float>(name, spec.rows, spec.dim), {}};
  }
  const void* halves = tensors.data(name, DType::kFloat16, {spec.rows, spec.dim});
  return {{}, {static_cast<const uint16_t*>(halves), spec.rows, spec.dim}};
}

void require_keys(ThreadPool& pool, Span<const int64_t> keys, const Vocabulary& vocabulary) {
  if (keys.size != vocabulary.size()) {
    throw BundleError("index: expected " + std::to_string(vocabulary.size()) +
                      " rows, as many as the item vocabulary has keys, found " +
                      std::to_string(keys.size));
  }
  for_each_block(pool, keys.size, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (keys[row] == kNoItem || vocabulary.row(keys[row]) != row + 1) {
        throw BundleError("index: key " + std::to_string(keys[row]) + " of row " +
                          std::to_string(row) + ": expected row " + std::to_string(row + 1) +
                          " of the item vocabulary, found " +
                          std::to_string(vocabulary.row(keys[row])));
      }
    }
  });
}

void require_fallback(const ItemAssets& items) {
  for (int64_t i = 0; i < items.fallback_rows.size; ++i) {
    const int64_t row = items.fallback_rows[i];
    if (row < 0 || row >= items.keys.size) {
      throw BundleError("fallback: position " + std::to_string(i) +
                        ": expected an index row below " + std::to_string(items.keys.size) +
                        ", found " + std::to_string(row));
    }
  }
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

ItemAssets load_items(const RetrievalSpec& spec, const Vocabulary& item_vocabulary,
                      BundleFiles& files, ThreadPool& pool) {
  ItemAssets items;
  const ItemVectors vectors = map_vectors(spec.index, files);
  require_unit_rows(pool, vectors);
  items.index = ItemIndex::from_unit_vectors(vectors, &pool);
  items.keys =
      files.tensors(spec.index.keys.file).vector<int64_t>(spec.index.keys.tensor, spec.index.rows);
  require_keys(pool, items.keys, item_vocabulary);
  const TensorName& rows = spec.fallback.rows;
  const TensorName& scores = spec.fallback.scores;
  items.fallback_rows = files.tensors(rows.file).vector<int64_t>(rows.tensor);
  items.fallback_scores =
      files.tensors(scores.file).vector<float>(scores.tensor, items.fallback_rows.size);
  require_fallback(items);
  require_finite(pool, "fallback: scores",
                 {items.fallback_scores.data, items.fallback_scores.size, 1});
  return items;
}

}  // namespace recengine
