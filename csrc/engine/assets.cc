#include "engine/assets.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/thread_pool.h"
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

bool all_finite(const uint16_t* halves, int64_t size) {
  uint16_t bad = 0;
  for (int64_t i = 0; i < size; ++i) {
    bad |= static_cast<uint16_t>((halves[i] & 0x7c00u) == 0x7c00u);
  }
  return bad == 0;
}

template <typename T>
void require_finite(ThreadPool& pool, const std::string& what, Matrix<const T> values) {
  for_each_block(pool, values.rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (!all_finite(values.row(row), values.cols)) {
        throw BundleError(what + ": row " + std::to_string(row) +
                          ": expected finite values, found NaN or infinity");
      }
    }
  });
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

DType stored_type(RowType type) {
  if (type == RowType::kFloat32) return DType::kFloat32;
  return type == RowType::kFloat16 ? DType::kFloat16 : DType::kInt8;
}

EmbeddingTable load_table(const std::string& name, const TableSpec& spec, BundleFiles& files,
                          ThreadPool& pool) {
  EmbeddingTable table;
  table.name = name;
  table.rows = spec.rows;
  table.dim = spec.dim;
  table.row_type = spec.row_type;
  table.data = files.tensors(spec.data.file)
                   .data(spec.data.tensor, stored_type(spec.row_type), {spec.rows, spec.dim});
  const std::string what = "table " + name;
  if (spec.row_type == RowType::kFloat32) {
    const auto* values = static_cast<const float*>(table.data);
    require_finite<float>(pool, what, {values, spec.rows, spec.dim});
  } else if (spec.row_type == RowType::kFloat16) {
    const auto* halves = static_cast<const uint16_t*>(table.data);
    require_finite<uint16_t>(pool, what, {halves, spec.rows, spec.dim});
  } else {
    const auto& tensors = files.tensors(spec.scales->file);
    table.scales = tensors.vector<float>(spec.scales->tensor, spec.rows).data;
    require_finite<float>(pool, what + ": scales", {table.scales, spec.rows, 1});
  }
  return table;
}

void require_unit_rows(ThreadPool& pool, Matrix<const float> vectors) {
  for_each_block(pool, vectors.rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      double square = 0;
      for (int64_t d = 0; d < vectors.cols; ++d) {
        square += static_cast<double>(vectors.row(row)[d]) * vectors.row(row)[d];
      }
      if (square != 0 && std::abs(std::sqrt(square) - 1) > kNormTolerance) {
        throw BundleError("index: row " + std::to_string(row) + ": expected norm 1 or 0, found " +
                          std::to_string(std::sqrt(square)));
      }
    }
  });
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
  const auto vectors =
      files.tensors(spec.index.vectors.file)
          .matrix<float>(spec.index.vectors.tensor, spec.index.rows, spec.index.dim);
  require_finite<float>(pool, "index", vectors);
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
  require_finite<float>(pool, "fallback: scores",
                        {items.fallback_scores.data, items.fallback_scores.size, 1});
  return items;
}

}  // namespace recengine
