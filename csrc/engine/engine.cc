#include "recengine/engine.h"

#include <algorithm>
#include <optional>

#include "cpu/thread_pool.h"
#include "engine/device_engine.h"
#include "engine/ranking.h"
#include "engine/retrieval.h"
#include "engine/version.h"
#include "recengine/error.h"

namespace recengine {
namespace {

class CpuEngine : public Engine {
 public:
  CpuEngine(const std::string& directory, const EngineOptions& options, ThreadPool& pool)
      : version_(directory, pool, options.resident), context_{options.pool, options.isa} {
    const Manifest& manifest = version_.manifest;
    const Assets& assets = version_.assets;
    if (manifest.retrieval) retrieval_.emplace(manifest, assets, version_.files, pool, options);
    if (manifest.ranking) ranking_.emplace(manifest, assets, version_.files, options);
  }

  const Schema& schema() const override { return version_.schema; }
  int device() const override { return kHost; }

  EngineMemory memory() const override { return version_.files.memory(); }

  bool has(Stage stage) const override { return version_.has(stage); }

  GraphWidths widths() const override {
    GraphWidths widths;
    if (retrieval_) widths.retrieval_sparse = retrieval_->sparse_width();
    if (retrieval_) widths.user = retrieval_->user_dim();
    if (ranking_) widths.ranking_sparse = ranking_->sparse_width();
    if (ranking_) widths.item = ranking_->item_dim();
    return widths;
  }

  int64_t threads_worth(Stage stage, int64_t rows) const override {
    const bool searches = stage == Stage::kTopK || stage == Stage::kRetrieval;
    return searches ? retrieval_->threads_worth(rows) : 1;
  }

  void retrieve(const UserBatch& users, Recommendations out) const override {
    require_stage(*this, Stage::kRetrieval);
    retrieval_->run(context_, users, out);
  }

  void rank(const UserBatch& users, const CandidateBatch& candidates,
            Recommendations out) const override {
    require_stage(*this, Stage::kRanking);
    ranking_->run(context_, users, candidates, out);
  }

  void look_up(const UserBatch& users, Matrix<float> sparse, const DeviceWork&) const override {
    require_stage(*this, Stage::kRetrievalLookup);
    retrieval_->look_up(context_, users, sparse);
  }

  void look_up(const UserBatch& users, const CandidateBatch& candidates, const RankerInputs& out,
               const DeviceWork&) const override {
    require_stage(*this, Stage::kRankingLookup);
    ranking_->look_up(context_, users, candidates, out);
  }

  void search(const UserBatch& users, Matrix<const float> vectors, Recommendations out,
              const DeviceWork&) const override {
    require_stage(*this, Stage::kTopK);
    retrieval_->search(context_, users, vectors, out);
  }

  void order(const UserBatch& users, const CandidateBatch& candidates,
             Matrix<const float> graph_scores, Recommendations out,
             const DeviceWork&) const override {
    require_stage(*this, Stage::kOrder);
    ranking_->order(users, candidates, graph_scores, out);
  }

 private:
  Version version_;
  Context context_;
  std::optional<Retrieval> retrieval_;
  std::optional<Ranking> ranking_;
};

std::unique_ptr<Engine> load_with(const std::string& directory, const EngineOptions& options,
                                  ThreadPool& pool) {
  try {
    if (options.device != kHost) return load_on_device(directory, options, pool);
    return std::make_unique<CpuEngine>(directory, options, pool);
  } catch (const InputError& error) {
    throw BundleError(directory + ": " + error.what());  // what an op or a vocabulary refused
  }
}

}  // namespace

const char* name_of(Stage stage) {
  constexpr const char* kNames[] = {"retrieval lookup", "topk",  "retrieval",
                                    "ranking lookup",   "order", "ranking"};
  return kNames[static_cast<size_t>(stage)];
}

std::unique_ptr<Engine> Engine::load(const std::string& directory, const EngineOptions& options) {
  if (options.pool != nullptr) return load_with(directory, options, *options.pool);
  ThreadPool pool(std::max(0, usable_cores() - 1));  // for hashing and checking only
  return load_with(directory, options, pool);
}

void Engine::recommend(const UserBatch& users, int64_t num_candidates, Recommendations out) const {
  std::vector<int64_t> ids(static_cast<size_t>(users.ids.size * num_candidates));
  std::vector<float> scores(ids.size());
  const Recommendations candidates = {{ids.data(), users.ids.size, num_candidates},
                                      {scores.data(), users.ids.size, num_candidates}};
  retrieve(users, candidates);
  rank(users, {candidates.item_ids, candidates.scores}, out);
}

}  // namespace recengine
