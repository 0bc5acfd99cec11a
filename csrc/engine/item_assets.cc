#include "engine/item_assets.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "engine/row_checks.h"
#include "ops/item_rows.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr double kNormTolerance = 1e-3;

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

std::vector<float> read_floats(const Safetensors& tensors, const char* name) {
  const auto values = tensors.vector<float>(name);
  return {values.data, values.data + values.size};
}

// With the codes that compile packed, where it did: those of a large catalog.
ItemIndex load_index(const IndexSpec& spec, BundleFiles& files, ThreadPool& pool) {
  const ItemVectors vectors = map_vectors(spec, files);
  require_unit_rows(pool, vectors);
  if (!spec.codes) return ItemIndex::from_unit_vectors(vectors, &pool);
  const Safetensors& tensors = files.tensors(*spec.codes);
  const StoredCodes codes = {tensors.vector<uint8_t>("codes"), read_floats(tensors, "bounds"),
                             read_floats(tensors, "axes"), read_floats(tensors, "scans")};
  try {
    return ItemIndex::with_codes(vectors, codes);
  } catch (const InputError& error) {
    throw BundleError(files.file(*spec.codes).path() + ": " + error.what());
  }
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

ItemAssets load_items(const RetrievalSpec& spec, const Vocabulary& item_vocabulary,
                      BundleFiles& files, ThreadPool& pool) {
  ItemAssets items;
  items.vocabulary = &item_vocabulary;
  items.index = load_index(spec.index, files, pool);
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

void ItemAssets::append_excluded(const UserBatch& users, int64_t user,
                                 std::vector<int64_t>& rows) const {
  const int32_t* lengths = users.lengths.row(user);
  const int64_t num_features = users.lengths.cols - 1;
  const int64_t* ids = users.ids[user];
  for (int64_t f = 0; f < num_features; ++f) ids += lengths[f];
  for (int32_t i = 0; i < lengths[num_features]; ++i) {
    const int64_t row = vocabulary->row(ids[i]);
    if (row != kOovRow) rows.push_back(row - 1);
  }
}

void ItemAssets::fall_back(const UserBatch& users, int64_t user, Span<int64_t> item_ids,
                           Span<float> scores) const {
  std::vector<int64_t> excluded;
  append_excluded(users, user, excluded);
  std::sort(excluded.begin(), excluded.end());
  int64_t filled = 0;
  for (int64_t i = 0; i < fallback_rows.size && filled < item_ids.size; ++i) {
    const int64_t row = fallback_rows[i];
    if (std::binary_search(excluded.begin(), excluded.end(), row)) continue;
    item_ids[filled] = keys[row];
    scores[filled] = fallback_scores[i];
    ++filled;
  }
  for (; filled < item_ids.size; ++filled) {
    item_ids[filled] = kNoItem;
    scores[filled] = -std::numeric_limits<float>::infinity();
  }
}

}  // namespace recengine
