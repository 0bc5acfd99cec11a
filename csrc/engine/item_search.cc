#include "engine/item_search.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "recengine/error.h"
#include "recengine/ops/cosine_topk.h"

namespace recengine {
namespace {

// Here and not in cosine_topk, because there a row is a position among the known users only.
void require_finite(const std::vector<int64_t>& known, Matrix<const float> vectors) {
  for (int64_t i = 0; i < vectors.rows; ++i) {
    const float* vector = vectors.row(i);
    if (!std::all_of(vector, vector + vectors.cols, [](float x) { return std::isfinite(x); })) {
      throw InputError("[retrieval] user " + std::to_string(known[static_cast<size_t>(i)]) +
                       ": expected a finite user vector from the graph, found NaN or infinity");
    }
  }
}

}  // namespace

// What a thread keeps between calls.
struct ItemSearch::Scratch {
  std::vector<int64_t> exclude_rows;
  std::vector<int32_t> exclude_lengths;
  std::vector<int64_t> rows;  // [known, k]
  std::vector<float> scores;  // [known, k]
};

ItemSearch::ItemSearch(const Manifest& manifest, const Assets& assets, BundleFiles& files,
                       ThreadPool& pool)
    : items_(load_items(*manifest.retrieval, assets.vocabulary(manifest.item_vocabulary), files,
                        pool)),
      item_vocabulary_(&assets.vocabulary(manifest.item_vocabulary)) {}

void ItemSearch::run(const Context& context, const UserBatch& users,
                     const std::vector<int64_t>& known, Matrix<const float> vectors,
                     Recommendations out) const {
  if (!known.empty()) search(context, users, known, vectors, out);
  auto next = known.begin();
  for (int64_t user = 0; user < users.ids.size; ++user) {
    if (next != known.end() && *next == user) {
      ++next;
    } else {
      fall_back(users, user, out);
    }
  }
}

// Appends the index rows of one user's excluded items; unknown ids are no items.
void ItemSearch::append_excluded(const UserBatch& users, int64_t user,
                                 std::vector<int64_t>& rows) const {
  const int32_t* lengths = users.lengths.row(user);
  const int64_t num_features = users.lengths.cols - 1;
  const int64_t* ids = users.ids[user];
  for (int64_t f = 0; f < num_features; ++f) ids += lengths[f];
  for (int32_t i = 0; i < lengths[num_features]; ++i) {
    const int64_t row = item_vocabulary_->row(ids[i]);
    if (row != kOovRow) rows.push_back(row - 1);
  }
}

void ItemSearch::search(const Context& context, const UserBatch& users,
                        const std::vector<int64_t>& known, Matrix<const float> vectors,
                        Recommendations out) const {
  static thread_local Scratch scratch;
  const int64_t count = vectors.rows;
  const int64_t k = out.item_ids.cols;
  require_finite(known, vectors);
  scratch.exclude_rows.clear();
  scratch.exclude_lengths.clear();
  for (const int64_t user : known) {
    const size_t before = scratch.exclude_rows.size();
    append_excluded(users, user, scratch.exclude_rows);
    scratch.exclude_lengths.push_back(static_cast<int32_t>(scratch.exclude_rows.size() - before));
  }
  scratch.rows.resize(static_cast<size_t>(count * k));
  scratch.scores.resize(static_cast<size_t>(count * k));

  const Matrix<int64_t> rows(scratch.rows.data(), count, k);
  const Matrix<float> scores(scratch.scores.data(), count, k);
  cosine_topk(context, items_.index, {vectors, scratch.exclude_rows, scratch.exclude_lengths}, rows,
              scores);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t user = known[static_cast<size_t>(i)];
    std::transform(rows.row(i), rows.row(i) + k, out.item_ids.row(user),
                   [&](int64_t row) { return row < 0 ? kNoItem : items_.keys[row]; });
    std::copy(scores.row(i), scores.row(i) + k, out.scores.row(user));
  }
}

// The fallback list without the user's excluded items.
void ItemSearch::fall_back(const UserBatch& users, int64_t user, Recommendations out) const {
  std::vector<int64_t> excluded;
  append_excluded(users, user, excluded);
  std::sort(excluded.begin(), excluded.end());
  int64_t filled = 0;
  for (int64_t i = 0; i < items_.fallback_rows.size && filled < out.item_ids.cols; ++i) {
    const int64_t row = items_.fallback_rows[i];
    if (std::binary_search(excluded.begin(), excluded.end(), row)) continue;
    out.item_ids.row(user)[filled] = items_.keys[row];
    out.scores.row(user)[filled] = items_.fallback_scores[i];
    ++filled;
  }
  for (; filled < out.item_ids.cols; ++filled) {
    out.item_ids.row(user)[filled] = kNoItem;
    out.scores.row(user)[filled] = -std::numeric_limits<float>::infinity();
  }
}

}  // namespace recengine
