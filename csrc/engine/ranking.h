#pragma once

#include "engine/assets.h"
#include "engine/dense_graph.h"
#include "engine/lookup.h"
#include "engine/manifest.h"
#include "recengine/engine.h"

namespace recengine {

// The ranking stage: lookup of users and candidates -> ranker -> order.
class Ranking {
 public:
  Ranking(const Manifest& manifest, const Assets& assets, const BundleFiles& files,
          const EngineOptions& options);

  void run(const Context& context, const UserBatch& users, const CandidateBatch& candidates,
           Recommendations out) const;

 private:
  struct Scratch;

  void gather_items(const Context& context, const CandidateBatch& candidates,
                    Scratch& scratch) const;
  void score(const Context& context, const CandidateBatch& candidates, Scratch& scratch) const;

  Lookup lookup_;
  DenseGraph graph_;
  const EmbeddingTable* item_table_;
  const Vocabulary* item_vocabulary_;
};

}  // namespace recengine
