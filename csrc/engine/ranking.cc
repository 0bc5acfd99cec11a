#include "engine/ranking.h"

#include <algorithm>
#include <vector>

#include "recengine/error.h"
#include "recengine/ops/embedding_bag.h"
#include "recengine/ops/order.h"

namespace recengine {
namespace {

GraphSignature signature(const Lookup& lookup, int64_t item_dim, const Manifest& manifest) {
  GraphSignature signature = {lookup.graph_inputs(), {"scores", {kDynamicDim, kDynamicDim}}};
  signature.usual_cols =
      manifest.retrieval ? manifest.retrieval->num_candidates : manifest.ranking->usual_candidates;
  signature.inputs.push_back({"items", {kDynamicDim, kDynamicDim, item_dim}});
  signature.inputs.push_back({"candidate_scores", {kDynamicDim, kDynamicDim}});
  return signature;
}

}  // namespace

// What a thread keeps between calls.
struct Ranking::Scratch {
  KnownUsers known;
  std::vector<int64_t> item_rows;       // [known, n]
  std::vector<int32_t> item_lengths;    // [known * n], all 1
  std::vector<float> items;             // [known, n, dim]
  std::vector<float> candidate_scores;  // [known, n]
  std::vector<float> graph_scores;      // [known, n]
  std::vector<float> scores;            // [batch, n]
};

Ranking::Ranking(const Manifest& manifest, const Assets& assets, const BundleFiles& files,
                 const EngineOptions& options)
    : lookup_("ranking", manifest, manifest.ranking->bags, assets),
      graph_(manifest.ranking->graph, manifest.graphs.at(manifest.ranking->graph),
             signature(lookup_, assets.table(manifest.ranking->item_table).dim, manifest), files,
             options),
      item_table_(&assets.table(manifest.ranking->item_table)),
      item_vocabulary_(&assets.vocabulary(manifest.item_vocabulary)) {
  if (item_table_->rows != item_vocabulary_->size() + 1) {
    throw BundleError("ranking: item table " + item_table_->name + ": expected " +
                      std::to_string(item_vocabulary_->size() + 1) + " rows, found " +
                      std::to_string(item_table_->rows));
  }
}

void Ranking::run(const Context& context, const UserBatch& users, const CandidateBatch& candidates,
                  Recommendations out) const {
  static thread_local Scratch scratch;
  const Matrix<const float> given = candidates.scores;
  lookup_.run(context, users, scratch.known);
  scratch.scores.assign(given.data, given.data + given.rows * given.cols);
  if (scratch.known.size() > 0 && given.cols > 0) score(context, candidates, scratch);
  order(candidates.item_ids, {scratch.scores.data(), given.rows, given.cols}, out.item_ids,
        out.scores);
}

// Rows of the item table for the candidates of the known users. An empty slot reads row 0 and
// score 0: the graph sees finite numbers, and order() drops the slot.
void Ranking::gather_items(const Context& context, const CandidateBatch& candidates,
                           Scratch& scratch) const {
  const int64_t n = candidates.item_ids.cols;
  const int64_t count = scratch.known.size() * n;
  scratch.item_rows.resize(static_cast<size_t>(count));
  scratch.candidate_scores.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < scratch.known.size(); ++i) {
    const int64_t user = scratch.known.users[static_cast<size_t>(i)];
    const int64_t* ids = candidates.item_ids.row(user);
    item_vocabulary_->lookup({ids, n}, {scratch.item_rows.data() + i * n, n});
    std::transform(ids, ids + n, candidates.scores.row(user),
                   scratch.candidate_scores.data() + i * n,
                   [](int64_t id, float score) { return id == kNoItem ? 0.0f : score; });
  }
  scratch.item_lengths.assign(static_cast<size_t>(count), 1);
  scratch.items.resize(static_cast<size_t>(count * item_table_->dim));
  const BagColumn column = {item_table_, Pooling::kSum, 0, 0};
  embedding_bag(context, {&column, 1}, {scratch.item_rows, {scratch.item_lengths.data(), count, 1}},
                {scratch.items.data(), count, item_table_->dim});
}

// Overwrites the scores of the known users by the graph's.
void Ranking::score(const Context& context, const CandidateBatch& candidates,
                    Scratch& scratch) const {
  const int64_t n = candidates.item_ids.cols;
  const int64_t count = scratch.known.size();
  gather_items(context, candidates, scratch);
  std::vector<GraphArgument> arguments = lookup_.graph_arguments(scratch.known);
  arguments.push_back({scratch.items.data(), {count, n, item_table_->dim}});
  arguments.push_back({scratch.candidate_scores.data(), {count, n}});
  scratch.graph_scores.resize(static_cast<size_t>(count * n));
  graph_.run(arguments, {scratch.graph_scores.data(), count, n});
  for (int64_t i = 0; i < count; ++i) {
    const float* scores = scratch.graph_scores.data() + i * n;
    const int64_t user = scratch.known.users[static_cast<size_t>(i)];
    std::copy(scores, scores + n, scratch.scores.data() + user * n);
  }
}

}  // namespace recengine
