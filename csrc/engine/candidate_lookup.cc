#include "engine/candidate_lookup.h"

#include <algorithm>

#include "recengine/error.h"
#include "recengine/ops/embedding_bag.h"

namespace recengine {
namespace {

// What a thread keeps between calls.
struct Scratch {
  std::vector<int64_t> rows;     // [users, n]
  std::vector<int32_t> lengths;  // [users * n], all 1
};

}  // namespace

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
  static thread_local Scratch scratch;
  const int64_t n = scores.cols;
  const int64_t count = scores.rows * n;
  scratch.rows.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < scores.rows; ++i) {
    const int64_t user = users[static_cast<size_t>(i)];
    const int64_t* ids = candidates.item_ids.row(user);
    vocabulary_->lookup({ids, n}, {scratch.rows.data() + i * n, n});
    std::transform(ids, ids + n, candidates.scores.row(user), scores.row(i),
                   [](int64_t id, float score) { return id == kNoItem ? 0.0f : score; });
  }
  scratch.lengths.assign(static_cast<size_t>(count), 1);
  const BagColumn column = {table_, Pooling::kSum, 0, 0};
  embedding_bag(context, {&column, 1}, {scratch.rows, {scratch.lengths.data(), count, 1}}, items);
}

}  // namespace recengine
