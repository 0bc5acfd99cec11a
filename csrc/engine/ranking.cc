#include "engine/ranking.h"

#include <algorithm>
#include <numeric>
#include <vector>

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

// Orders the candidates by the graph's scores [known, n or more], those of unknown users by their
// own.
void order_by(const std::vector<int64_t>& known, Matrix<const float> graph_scores,
              const CandidateBatch& candidates, Recommendations out) {
  static thread_local std::vector<float> scores;  // [batch, n]
  const Matrix<const float> given = candidates.scores;
  scores.assign(given.data, given.data + given.rows * given.cols);
  for (size_t i = 0; i < known.size(); ++i) {
    const float* row = graph_scores.row(static_cast<int64_t>(i));
    std::copy(row, row + given.cols, scores.data() + known[i] * given.cols);
  }
  order(candidates.item_ids, {scores.data(), given.rows, given.cols}, out.item_ids, out.scores);
}

}  // namespace

// What a thread keeps between calls.
struct Ranking::Scratch {
  KnownUsers known;
  std::vector<float> items;             // [known, n, dim]
  std::vector<float> candidate_scores;  // [known, n]
  std::vector<float> graph_scores;      // [known, n]
};

Ranking::Ranking(const Manifest& manifest, const Assets& assets, const BundleFiles& files,
                 const EngineOptions& options)
    : features_(manifest, manifest.ranking->bags, assets) {
  const RankingSpec& spec = *manifest.ranking;
  if (manifest.holds(StageKind::kLookup)) {
    lookup_.emplace("ranking", manifest, spec.bags, assets);
    items_.emplace(manifest, assets);
  }
  if (!manifest.stage) {
    graph_.emplace(spec.graph, manifest.graphs.at(spec.graph),
                   signature(*lookup_, items_->dim(), manifest), files, options);
  }
}

void Ranking::run(const Context& context, const UserBatch& users, const CandidateBatch& candidates,
                  Recommendations out) const {
  static thread_local Scratch scratch;
  lookup_->run(context, users, scratch.known);
  const int64_t n = candidates.item_ids.cols;
  if (scratch.known.size() > 0 && n > 0) score(context, candidates, scratch);
  order_by(scratch.known.users, {scratch.graph_scores.data(), scratch.known.size(), n}, candidates,
           out);
}

// The graph's scores of the known users.
void Ranking::score(const Context& context, const CandidateBatch& candidates,
                    Scratch& scratch) const {
  const int64_t n = candidates.item_ids.cols;
  const int64_t count = scratch.known.size();
  const int64_t dim = items_->dim();
  scratch.items.resize(static_cast<size_t>(count * n * dim));
  scratch.candidate_scores.resize(static_cast<size_t>(count * n));
  items_->run(context, candidates, scratch.known.users, {scratch.items.data(), count * n, dim},
              {scratch.candidate_scores.data(), count, n});
  std::vector<GraphArgument> arguments = lookup_->graph_arguments(scratch.known);
  arguments.push_back({scratch.items.data(), {count, n, dim}});
  arguments.push_back({scratch.candidate_scores.data(), {count, n}});
  scratch.graph_scores.resize(static_cast<size_t>(count * n));
  graph_->run(arguments, {scratch.graph_scores.data(), count, n});
}

void Ranking::look_up(const Context& context, const UserBatch& users,
                      const CandidateBatch& candidates, const RankerInputs& out) const {
  lookup_->run(context, users, out.sparse);
  std::vector<int64_t> all(static_cast<size_t>(users.ids.size));
  std::iota(all.begin(), all.end(), 0);
  if (candidates.item_ids.cols > 0) {
    items_->run(context, candidates, all, out.items, out.item_scores);
    return;
  }
  const std::vector<int64_t> empty_ids(all.size(), kNoItem);
  const std::vector<float> no_scores(all.size());
  const CandidateBatch empty_slots = {{empty_ids.data(), users.ids.size, 1},
                                      {no_scores.data(), users.ids.size, 1}};
  items_->run(context, empty_slots, all, out.items, out.item_scores);
}

void Ranking::order(const UserBatch& users, const CandidateBatch& candidates,
                    Matrix<const float> graph_scores, Recommendations out) const {
  static thread_local std::vector<int64_t> known;
  static thread_local std::vector<float> selected;
  features_.find_known(users, known);
  order_by(known, select_rows(graph_scores, known, selected), candidates, out);
}

}  // namespace recengine
