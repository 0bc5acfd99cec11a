#pragma once

#include <optional>

#include "engine/assets.h"
#include "engine/candidate_lookup.h"
#include "engine/dense_graph.h"
#include "engine/lookup.h"
#include "engine/manifest.h"
#include "engine/user_features.h"
#include "recengine/engine.h"

namespace recengine {

// Ranking: lookup of users and candidates -> ranker -> order; or one of its stages alone, where the
// manifest is that of a split repository.
class Ranking {
 public:
  Ranking(const Manifest& manifest, const Assets& assets, const BundleFiles& files,
          const EngineOptions& options);

  // Widths of what goes into the graph; 0 without the stage.
  int64_t sparse_width() const { return lookup_ ? lookup_->width() : 0; }
  int64_t item_dim() const { return items_ ? items_->dim() : 0; }

  // Each needs the stages that it names.
  void run(const Context& context, const UserBatch& users, const CandidateBatch& candidates,
           Recommendations out) const;
  void look_up(const Context& context, const UserBatch& users, const CandidateBatch& candidates,
               const RankerInputs& out) const;
  void order(const UserBatch& users, const CandidateBatch& candidates,
             Matrix<const float> graph_scores, Recommendations out) const;

 private:
  struct Scratch;

  void score(const Context& context, const CandidateBatch& candidates, Scratch& scratch) const;

  UserFeatures features_;
  std::optional<Lookup> lookup_;
  std::optional<CandidateLookup> items_;
  std::optional<DenseGraph> graph_;
};

}  // namespace recengine
