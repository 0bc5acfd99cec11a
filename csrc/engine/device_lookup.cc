#include "engine/device_lookup.h"

#include <cstdint>

#include "ops/stage_values.h"
#include "recengine/ops/embedding_bag.h"

namespace recengine {

DeviceLookup::DeviceLookup(const std::string& stage, const Manifest& manifest,
                           const std::vector<BagSpec>& bags, const Assets& assets,
                           const DeviceTables& tables)
    : lookup_(stage, manifest, bags, assets), columns_(lookup_.columns()) {
  for (size_t i = 0; i < bags.size(); ++i) {
    columns_[i].table = &tables.view(bags[i].table);
    const FeatureSpec& feature = manifest.features[find_feature(manifest, bags[i].feature)];
    columns_[i].max_length = static_cast<int32_t>(ids_read(bags[i], feature));
  }
}

DeviceLookup::Bags DeviceLookup::find_bags(const UserBatch& users, DeviceUpload& upload) const {
  static thread_local UserBags bags;
  lookup_.find_bags(users, bags);
  const auto lengths = upload.add(bags.lengths);
  return {lengths, upload.add(bags.rows, few_sizes(static_cast<int64_t>(bags.rows.size()), 2))};
}

void DeviceLookup::pool(const CudaContext& context, const DeviceUpload& upload, const Bags& bags,
                        Matrix<float> sparse) const {
  const auto columns = static_cast<int64_t>(columns_.size());
  embedding_bag_cuda(context, columns_,
                     {upload[bags.rows], {upload.data(bags.lengths), sparse.rows, columns}},
                     sparse);
}

DeviceCandidateLookup::DeviceCandidateLookup(const Manifest& manifest, const Assets& assets,
                                             const DeviceTables& tables, int device)
    : table_(&tables.view(manifest.ranking->item_table)),
      vocabulary_(CandidateLookup(manifest, assets).vocabulary(), device) {}

void DeviceCandidateLookup::run(const CudaContext& context, const CandidateBatch& candidates,
                                Span<const int32_t> lengths, Matrix<float> items,
                                Matrix<float> scores) const {
  const int64_t count = scores.rows * scores.cols;
  const Span<const int64_t> ids(candidates.item_ids.data, count);
  const DeviceValues<int64_t> rows(context, count);
  vocabulary_.lookup(context.stream, ids, rows.span());
  // Of each user a sequence of n rows.
  const BagColumn column = {table_, Pooling::kNone, static_cast<int32_t>(scores.cols), 0};
  embedding_bag_cuda(context, {&column, 1}, {rows.span(), {lengths.data, scores.rows, 1}},
                     {items.data, scores.rows, scores.cols * items.cols});
  slot_scores_cuda(context, ids, {candidates.scores.data, count}, {scores.data, count});
}

}  // namespace recengine
