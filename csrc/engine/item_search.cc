#include "engine/item_search.h"

#include <algorithm>
#include <cmath>

#include "recengine/error.h"
#include "recengine/ops/cosine_topk.h"

namespace recengine {
namespace {

// Here and not in cosine_topk, because there a row is a position among the known users only.
void require_finite(const std::vector<int64_t>& known, Matrix<const float> vectors) {
  for (int64_t i = 0; i < vectors.rows; ++i) {
    const float* vector = vectors.row(i);
    if (!std::all_of(vector, vector + vectors.cols, [](float x) { return std::isfinite(x); })) {
      fail_vector(known[static_cast<size_t>(i)]);
    }
  }
}

}  // namespace

void fail_vector(int64_t user) {
  throw InputError("[retrieval] user " + std::to_string(user) +
                   ": expected a finite user vector from the graph, found NaN or infinity");
}

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
                        pool)) {}

void ItemSearch::run(const Context& context, const UserBatch& users,
                     const std::vector<int64_t>& known, Matrix<const float> vectors,
                     Recommendations out) const {
  if (!known.empty()) search(context, users, known, vectors, out);
  auto next = known.begin();
  for (int64_t user = 0; user < users.ids.size; ++user) {
    if (next != known.end() && *next == user) {
      ++next;
    } else {
      const int64_t k = out.item_ids.cols;
      items_.fall_back(users, user, {out.item_ids.row(user), k}, {out.scores.row(user), k});
    }
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
    items_.append_excluded(users, user, scratch.exclude_rows);
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

}  // namespace recengine
