#include "engine/lookup.h"

#include <algorithm>

#include "recengine/error.h"

namespace recengine {
namespace {

size_t find_feature(const Manifest& manifest, const std::string& name) {
  const auto found = std::find_if(manifest.features.begin(), manifest.features.end(),
                                  [&](const FeatureSpec& feature) { return feature.name == name; });
  return static_cast<size_t>(found - manifest.features.begin());
}

}  // namespace

Lookup::Lookup(const std::string& stage, const Manifest& manifest, const std::vector<BagSpec>& bags,
               const Assets& assets)
    : num_dense_(static_cast<int64_t>(manifest.dense_features.size())) {
  for (const FeatureSpec& spec : manifest.features) {
    features_.push_back({&assets.vocabulary(spec.vocabulary), 0});
  }
  for (const BagSpec& spec : bags) {
    const size_t position = find_feature(manifest, spec.feature);
    Feature& feature = features_[position];
    const EmbeddingTable& table = assets.table(spec.table);
    if (table.rows != feature.vocabulary->size() + 1) {
      throw BundleError(stage + ": table " + spec.table + " of feature " + spec.feature +
                        ": expected " + std::to_string(feature.vocabulary->size() + 1) +
                        " rows, found " + std::to_string(table.rows));
    }
    const int64_t max_length = std::min(spec.max_length, manifest.features[position].max_length);
    feature.keep = std::max(feature.keep, max_length);
    bags_.push_back({position, max_length});
    columns_.push_back({&table, spec.pooling, 0, width_});
    width_ += table.dim;
  }
}

void Lookup::run(const Context& context, const UserBatch& users, KnownUsers& known) const {
  known.users.clear();
  known.dense.clear();
  known.bag_rows.clear();
  known.bag_lengths.clear();
  for (int64_t user = 0; user < users.ids.size; ++user) {
    const int32_t* lengths = users.lengths.row(user);
    if (!map_features(users.ids[user], lengths, known)) continue;
    append_bags(lengths, known);
    known.users.push_back(user);
    const float* dense = users.dense.row(user);
    known.dense.insert(known.dense.end(), dense, dense + num_dense_);
  }
  if (known.users.empty()) return;
  known.sparse.resize(static_cast<size_t>(known.size() * width_));
  const Matrix<const int32_t> lengths(known.bag_lengths.data(), known.size(),
                                      static_cast<int64_t>(bags_.size()));
  embedding_bag(context, columns_, {known.bag_rows, lengths},
                {known.sparse.data(), known.size(), width_});
}

// Maps one user's features to table rows; tells whether any id is known.
bool Lookup::map_features(const int64_t* ids, const int32_t* lengths, KnownUsers& known) const {
  known.feature_rows.clear();
  known.feature_ends.clear();
  const int64_t* end = ids;
  for (size_t f = 0; f < features_.size(); ++f) {
    end += lengths[f];
    const int64_t count = std::min<int64_t>(lengths[f], features_[f].keep);
    const size_t start = known.feature_rows.size();
    known.feature_rows.resize(start + static_cast<size_t>(count));
    features_[f].vocabulary->lookup({end - count, count},
                                    {known.feature_rows.data() + start, count});
    known.feature_ends.push_back(static_cast<int64_t>(known.feature_rows.size()));
  }
  return std::any_of(known.feature_rows.begin(), known.feature_rows.end(),
                     [](int64_t row) { return row != kOovRow; });
}

// Each bag takes the last rows of its feature.
void Lookup::append_bags(const int32_t* lengths, KnownUsers& known) const {
  for (const Bag& bag : bags_) {
    const int64_t count = std::min<int64_t>(lengths[bag.feature], bag.max_length);
    const int64_t* end = known.feature_rows.data() + known.feature_ends[bag.feature];
    known.bag_rows.insert(known.bag_rows.end(), end - count, end);
    known.bag_lengths.push_back(static_cast<int32_t>(count));
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
