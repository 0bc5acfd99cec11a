#include "engine/lookup.h"

#include <algorithm>

#include "recengine/error.h"

namespace recengine {
namespace {

BagInput bag_input(const UserBags& bags, int64_t users) {
  const auto columns = static_cast<int64_t>(bags.lengths.size()) / std::max<int64_t>(users, 1);
  BagInput input;
  input.rows = bags.rows;
  input.lengths = {bags.lengths.data(), users, columns};
  return input;
}

}  // namespace

Lookup::Lookup(const std::string& stage, const Manifest& manifest, const std::vector<BagSpec>& bags,
               const Assets& assets)
    : features_(manifest, bags, assets),
      num_dense_(static_cast<int64_t>(manifest.dense_features.size())) {
  for (const BagSpec& spec : bags) {
    const size_t position = find_feature(manifest, spec.feature);
    const FeatureSpec& feature = manifest.features[position];
    const int64_t rows = assets.vocabulary(feature.vocabulary).size() + 1;
    const EmbeddingTable& table = assets.table(spec.table);
    if (table.rows != rows) {
      throw BundleError(stage + ": table " + spec.table + " of feature " + spec.feature +
                        ": expected " + std::to_string(rows) + " rows, found " +
                        std::to_string(table.rows));
    }
    bags_.push_back({position, ids_read(spec, feature)});
    columns_.push_back({&table, spec.pooling, 0, width_});
    width_ += table.dim;
  }
}

void Lookup::run(const Context& context, const UserBatch& users, KnownUsers& known) const {
  known.users.clear();
  known.dense.clear();
  known.bags.rows.clear();
  known.bags.lengths.clear();
  for (int64_t user = 0; user < users.ids.size; ++user) {
    if (!features_.map(users.ids[user], users.lengths.row(user), known.features)) continue;
    append_bags(known.features, known.bags);
    known.users.push_back(user);
    const float* dense = users.dense.row(user);
    known.dense.insert(known.dense.end(), dense, dense + num_dense_);
  }
  if (known.users.empty()) return;
  known.sparse.resize(static_cast<size_t>(known.size() * width_));
  embedding_bag(context, columns_, bag_input(known.bags, known.size()),
                {known.sparse.data(), known.size(), width_});
}

void Lookup::run(const Context& context, const UserBatch& users, Matrix<float> sparse) const {
  static thread_local UserBags bags;
  find_bags(users, bags);
  embedding_bag(context, columns_, bag_input(bags, users.ids.size), sparse);
}

void Lookup::find_bags(const UserBatch& users, UserBags& bags) const {
  static thread_local FeatureRows features;
  bags.rows.clear();
  bags.lengths.clear();
  for (int64_t user = 0; user < users.ids.size; ++user) {
    if (features_.map(users.ids[user], users.lengths.row(user), features)) {
      append_bags(features, bags);
    } else {
      bags.lengths.insert(bags.lengths.end(), bags_.size(), 0);
    }
  }
}

// Each bag takes the last rows of its feature.
void Lookup::append_bags(const FeatureRows& features, UserBags& bags) const {
  for (const Bag& bag : bags_) {
    const int64_t count = std::min(features.count(bag.feature), bag.max_length);
    const int64_t* end = features.rows.data() + features.ends[bag.feature];
    bags.rows.insert(bags.rows.end(), end - count, end);
    bags.lengths.push_back(static_cast<int32_t>(count));
  }
}

std::vector<GraphTensor> Lookup::graph_inputs() const {
  std::vector<GraphTensor> inputs = {{"sparse", {kDynamicDim, width_}}};
  if (num_dense_ > 0) inputs.push_back({"dense", {kDynamicDim, num_dense_}});
  return inputs;
}

std::vector<GraphArgument> Lookup::graph_arguments(const KnownUsers& known) const {
  std::vector<GraphArgument> arguments = {{known.sparse.data(), {known.size(), width_}}};
  if (num_dense_ > 0) arguments.push_back({known.dense.data(), {known.size(), num_dense_}});
  return arguments;
}

}  // namespace recengine
