#pragma once

#include "engine/assets.h"
#include "engine/dense_graph.h"
#include "engine/lookup.h"
#include "engine/manifest.h"
#include "recengine/engine.h"

namespace recengine {

// The retrieval stage: lookup -> user tower -> nearest items.
class Retrieval {
 public:
  Retrieval(const Manifest& manifest, const Assets& assets, BundleFiles& files, ThreadPool& pool,
            const EngineOptions& options);

  void run(const Context& context, const UserBatch& users, Recommendations out) const;

 private:
  struct Scratch;

  void append_excluded(const UserBatch& users, int64_t user, std::vector<int64_t>& rows) const;
  void search(const Context& context, const UserBatch& users, Scratch& scratch,
              Recommendations out) const;
  void fall_back(const UserBatch& users, int64_t user, Recommendations out) const;

  Lookup lookup_;
  DenseGraph graph_;
  ItemAssets items_;
  const Vocabulary* item_vocabulary_;
};

}  // namespace recengine
