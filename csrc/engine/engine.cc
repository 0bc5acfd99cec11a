#include "recengine/engine.h"

#include <algorithm>
#include <optional>

#include "cpu/thread_pool.h"
#include "engine/assets.h"
#include "engine/bundle_files.h"
#include "engine/manifest.h"
#include "engine/mapped_file.h"
#include "engine/ranking.h"
#include "engine/retrieval.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr char kManifestName[] = "manifest.json";

Schema make_schema(const Manifest& manifest, const Assets& assets) {
  Schema schema;
  schema.name = manifest.name;
  for (const FeatureSpec& feature : manifest.features) {
    schema.features.push_back({feature.name, feature.max_length, feature.hashed});
    if (feature.vocabulary == manifest.item_vocabulary) schema.hashed_items |= feature.hashed;
  }
  schema.dense_features = manifest.dense_features;
  schema.num_items = assets.vocabulary(manifest.item_vocabulary).size();
  // Without retrieval the caller brings the candidates, at most the whole catalog.
  schema.max_candidates = schema.num_items;
  if (manifest.retrieval) {
    schema.num_candidates = manifest.retrieval->num_candidates;
    schema.max_candidates = manifest.retrieval->max_candidates;
  }
  schema.k = manifest.ranking ? manifest.ranking->k : schema.num_candidates;
  return schema;
}

class LoadedEngine : public Engine {
 public:
  LoadedEngine(const std::string& directory, const EngineOptions& options, ThreadPool& pool)
      : manifest_(read_manifest(MappedFile(directory, kManifestName))),
        files_(directory, manifest_, pool),
        assets_(manifest_, files_, pool),
        schema_(make_schema(manifest_, assets_)),
        context_{options.pool, options.isa} {
    if (manifest_.retrieval) retrieval_.emplace(manifest_, assets_, files_, pool, options);
    if (manifest_.ranking) ranking_.emplace(manifest_, assets_, files_, options);
  }

  const Schema& schema() const override { return schema_; }

  bool has(Stage stage) const override {
    switch (stage) {
      case Stage::kRetrievalLookup:
        return retrieval_ && manifest_.holds(StageKind::kLookup);
      case Stage::kTopK:
        return retrieval_ && manifest_.holds(StageKind::kTopK);
      case Stage::kRetrieval:
        return retrieval_ && !manifest_.stage;
      case Stage::kRankingLookup:
        return ranking_ && manifest_.holds(StageKind::kLookup);
      case Stage::kOrder:
        return ranking_ && manifest_.holds(StageKind::kOrder);
      case Stage::kRanking:
        return ranking_ && !manifest_.stage;
    }
    return false;
  }

  GraphWidths widths() const override {
    GraphWidths widths;
    if (retrieval_) widths.retrieval_sparse = retrieval_->sparse_width();
    if (retrieval_) widths.user = retrieval_->user_dim();
    if (ranking_) widths.ranking_sparse = ranking_->sparse_width();
    if (ranking_) widths.item = ranking_->item_dim();
    return widths;
  }

  void retrieve(const UserBatch& users, Recommendations out) const override {
    require(Stage::kRetrieval);
    retrieval_->run(context_, users, out);
  }

  void rank(const UserBatch& users, const CandidateBatch& candidates,
            Recommendations out) const override {
    require(Stage::kRanking);
    ranking_->run(context_, users, candidates, out);
  }

  void look_up(const UserBatch& users, Matrix<float> sparse) const override {
    require(Stage::kRetrievalLookup);
    retrieval_->look_up(context_, users, sparse);
  }

  void look_up(const UserBatch& users, const CandidateBatch& candidates,
               const RankerInputs& out) const override {
    require(Stage::kRankingLookup);
    ranking_->look_up(context_, users, candidates, out);
  }

  void search(const UserBatch& users, Matrix<const float> vectors,
              Recommendations out) const override {
    require(Stage::kTopK);
    retrieval_->search(context_, users, vectors, out);
  }

  void order(const UserBatch& users, const CandidateBatch& candidates,
             Matrix<const float> graph_scores, Recommendations out) const override {
    require(Stage::kOrder);
    ranking_->order(users, candidates, graph_scores, out);
  }

 private:
  void require(Stage stage) const {
    if (!has(stage))
      throw InputError(std::string("[engine] this version has no ") + name_of(stage) + " stage");
  }

  // The later ones borrow from the earlier ones.
  Manifest manifest_;
  BundleFiles files_;
  Assets assets_;
  Schema schema_;
  Context context_;
  std::optional<Retrieval> retrieval_;
  std::optional<Ranking> ranking_;
};

std::unique_ptr<Engine> load_with(const std::string& directory, const EngineOptions& options,
                                  ThreadPool& pool) {
  try {
    return std::make_unique<LoadedEngine>(directory, options, pool);
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
