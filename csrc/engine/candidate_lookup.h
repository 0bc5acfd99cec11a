#pragma once

#include <cstdint>
#include <vector>

#include "engine/assets.h"
#include "engine/manifest.h"
#include "recengine/context.h"
#include "recengine/engine.h"

namespace recengine {

// The stage `lookup` of candidates: item ids -> rows of the item table.
class CandidateLookup {
 public:
  // Throws BundleError when the table has not one row for each item and one for unknown ids.
  CandidateLookup(const Manifest& manifest, const Assets& assets);

  int64_t dim() const { return table_->dim; }
  const Vocabulary& vocabulary() const { return *vocabulary_; }

  // Items [users * n, dim] and scores [users, n] of the candidates of `users`, rows of the batch.
  // An empty slot reads row 0 and score 0: the graph sees finite numbers, and order() drops it.
  void run(const Context& context, const CandidateBatch& candidates,
           const std::vector<int64_t>& users, Matrix<float> items, Matrix<float> scores) const;

 private:
  const EmbeddingTable* table_;
  const Vocabulary* vocabulary_;
};

}  // namespace recengine
