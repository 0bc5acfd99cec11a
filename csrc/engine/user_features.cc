#include "engine/user_features.h"

#include <algorithm>

#include "recengine/vocabulary.h"

namespace recengine {
namespace {

// The last `count` ids that are items; `storage` takes them where there is padding between.
Span<const int64_t> last_items(Span<const int64_t> ids, int64_t count,
                               std::vector<int64_t>& storage) {
  const int64_t most = std::min(count, ids.size);
  const Span<const int64_t> last(ids.end() - most, most);
  if (std::find(last.begin(), last.end(), kNoItem) == last.end()) return last;
  storage.clear();
  for (int64_t i = ids.size - 1; i >= 0 && static_cast<int64_t>(storage.size()) < count; --i) {
    if (ids[i] != kNoItem) storage.push_back(ids[i]);
  }
  std::reverse(storage.begin(), storage.end());
  return storage;
}

}  // namespace

size_t find_feature(const Manifest& manifest, const std::string& name) {
  const auto found = std::find_if(manifest.features.begin(), manifest.features.end(),
                                  [&](const FeatureSpec& feature) { return feature.name == name; });
  return static_cast<size_t>(found - manifest.features.begin());
}

int64_t ids_read(const BagSpec& bag, const FeatureSpec& feature) {
  return std::min(bag.max_length, feature.max_length);
}

UserFeatures::UserFeatures(const Manifest& manifest, const std::vector<BagSpec>& bags,
                           const Assets& assets) {
  for (const FeatureSpec& spec : manifest.features) {
    const bool has_items = spec.vocabulary == manifest.item_vocabulary;
    features_.push_back({&assets.vocabulary(spec.vocabulary), has_items, 0});
  }
  for (const BagSpec& bag : bags) {
    const size_t position = find_feature(manifest, bag.feature);
    int64_t& keep = features_[position].keep;
    keep = std::max(keep, ids_read(bag, manifest.features[position]));
  }
}

bool UserFeatures::map(const int64_t* ids, const int32_t* lengths, FeatureRows& out) const {
  static thread_local std::vector<int64_t> items;
  out.rows.clear();
  out.ends.clear();
  for (size_t f = 0; f < features_.size(); ++f) {
    const Feature& feature = features_[f];
    Span<const int64_t> given(ids, lengths[f]);
    ids += lengths[f];
    if (feature.has_items) given = last_items(given, feature.keep, items);
    const int64_t count = std::min(given.size, feature.keep);
    const size_t start = out.rows.size();
    out.rows.resize(start + static_cast<size_t>(count));
    feature.vocabulary->lookup({given.end() - count, count}, {out.rows.data() + start, count});
    out.ends.push_back(static_cast<int64_t>(out.rows.size()));
  }
  return std::any_of(out.rows.begin(), out.rows.end(), [](int64_t row) { return row != kOovRow; });
}

void UserFeatures::find_known(const UserBatch& users, std::vector<int64_t>& known) const {
  static thread_local FeatureRows rows;
  known.clear();
  for (int64_t user = 0; user < users.ids.size; ++user) {
    if (map(users.ids[user], users.lengths.row(user), rows)) known.push_back(user);
  }
}

Matrix<const float> select_rows(Matrix<const float> batch, const std::vector<int64_t>& users,
                                std::vector<float>& storage) {
  const auto count = static_cast<int64_t>(users.size());
  if (count == batch.rows) return batch;
  storage.clear();
  for (const int64_t user : users) {
    storage.insert(storage.end(), batch.row(user), batch.row(user) + batch.cols);
  }
  return {storage.data(), count, batch.cols};
}

}  // namespace recengine
