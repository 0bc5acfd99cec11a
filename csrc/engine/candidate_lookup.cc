#include "engine/candidate_lookup.h"

#include <algorithm>

#include "ops/gather_rows.h"
#include "recengine/error.h"

namespace recengine {

CandidateLookup::CandidateLookup(const Manifest& manifest, const Assets& assets)
    : table_(&assets.table(manifest.ranking->item_table)),
      vocabulary_(&assets.vocabulary(manifest.item_vocabulary)) {
  if (table_->rows != vocabulary_->size() + 1) {
    throw BundleError("ranking: item table " + table_->name + ": expected " +
                      std::to_string(vocabulary_->size() + 1) + " rows, found " +
                      std::to_string(table_->rows));
  }
}

void CandidateLookup::run(const Context& context, const CandidateBatch& candidates,
                          const std::vector<int64_t>& users, Matrix<float> items,
                          Matrix<float> scores) const {
  static thread_local std::vector<int64_t> rows;  // [users, n]
  const int64_t n = scores.cols;
  rows.resize(static_cast<size_t>(scores.rows * n));
  for (int64_t i = 0; i < scores.rows; ++i) {
    const int64_t user = users[static_cast<size_t>(i)];
    const int64_t* ids = candidates.item_ids.row(user);
    vocabulary_->lookup({ids, n}, {rows.data() + i * n, n});
    std::transform(ids, ids + n, candidates.scores.row(user), scores.row(i),
                   [](int64_t id, float score) { return id == kNoItem ? 0.0f : score; });
  }
  gather_rows(context, *table_, rows, items);
}

}  // namespace recengine
