#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/assets.h"
#include "engine/dense_graph.h"
#include "engine/manifest.h"
#include "engine/user_features.h"
#include "recengine/context.h"
#include "recengine/engine.h"
#include "recengine/ops/embedding_bag.h"

namespace recengine {

// What a lookup pools: table rows, bag after bag.
struct UserBags {
  std::vector<int64_t> rows;
  std::vector<int32_t> lengths;  // [users, bags]
};

// What a dense graph reads of the users of whom anything is known. A thread keeps one for all its
// calls, so that a call allocates only when it is the largest yet.
struct KnownUsers {
  std::vector<int64_t> users;  // their rows in the batch, ascending
  std::vector<float> sparse;   // [users, width]
  std::vector<float> dense;    // [users, dense features]

  // Between mapping and pooling.
  UserBags bags;
  FeatureRows features;  // of one user

  int64_t size() const { return static_cast<int64_t>(users.size()); }
};

// The stage `lookup`: raw ids -> vocabulary rows -> pooled embeddings.
class Lookup {
 public:
  // Throws BundleError when a table has not one row for each key of its feature's vocabulary and
  // one for unknown ids.
  Lookup(const std::string& stage, const Manifest& manifest, const std::vector<BagSpec>& bags,
         const Assets& assets);

  // Fills `known` from the users of whom at least one id is in a vocabulary.
  void run(const Context& context, const UserBatch& users, KnownUsers& known) const;

  // The graph input `sparse` of all users; zeros for one of whom nothing is known.
  void run(const Context& context, const UserBatch& users, Matrix<float> sparse) const;

  // The bags of all users; those of one of whom nothing is known are empty.
  void find_bags(const UserBatch& users, UserBags& bags) const;

  const std::vector<BagColumn>& columns() const { return columns_; }
  int64_t width() const { return width_; }

  // The graph inputs that run() fills: sparse, and dense when the model has dense features.
  std::vector<GraphTensor> graph_inputs() const;
  std::vector<GraphArgument> graph_arguments(const KnownUsers& known) const;

 private:
  struct Bag {
    size_t feature;
    int64_t max_length;
  };

  void append_bags(const FeatureRows& features, UserBags& bags) const;

  UserFeatures features_;
  std::vector<Bag> bags_;
  std::vector<BagColumn> columns_;
  int64_t width_ = 0;
  int64_t num_dense_ = 0;
};

}  // namespace recengine
