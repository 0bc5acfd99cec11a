#pragma once

#include <optional>

#include "engine/assets.h"
#include "engine/dense_graph.h"
#include "engine/item_search.h"
#include "engine/lookup.h"
#include "engine/manifest.h"
#include "engine/user_features.h"
#include "recengine/engine.h"

namespace recengine {

// Retrieval: lookup -> user tower -> nearest items; or one of its stages alone, where the manifest
// is that of a split repository.
class Retrieval {
 public:
  Retrieval(const Manifest& manifest, const Assets& assets, BundleFiles& files, ThreadPool& pool,
            const EngineOptions& options);

  // Widths of what goes into the graph and comes out of it; 0 without the stage.
  int64_t sparse_width() const { return lookup_ ? lookup_->width() : 0; }
  int64_t user_dim() const { return search_ ? search_->dim() : 0; }

  // Each needs the stages that it names.
  int64_t threads_worth(int64_t users) const { return search_->threads_worth(users); }
  void run(const Context& context, const UserBatch& users, Recommendations out) const;
  void look_up(const Context& context, const UserBatch& users, Matrix<float> sparse) const;
  void search(const Context& context, const UserBatch& users, Matrix<const float> vectors,
              Recommendations out) const;

 private:
  struct Scratch;

  UserFeatures features_;
  std::optional<Lookup> lookup_;
  std::optional<DenseGraph> graph_;
  std::optional<ItemSearch> search_;
};

}  // namespace recengine
