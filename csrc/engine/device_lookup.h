#pragma once

#include <string>
#include <vector>

#include "engine/candidate_lookup.h"
#include "engine/device_tables.h"
#include "engine/device_values.h"
#include "engine/lookup.h"
#include "recengine/cuda.h"
#include "recengine/device_vocabulary.h"

namespace recengine {

// The stage `lookup` of users on a GPU. Ids come from the host and are mapped there, for what is
// known of a user decides there, too; rows are read and pooled on the device.
class DeviceLookup {
 public:
  // Throws as Lookup does. `tables` must outlive it.
  DeviceLookup(const std::string& stage, const Manifest& manifest, const std::vector<BagSpec>& bags,
               const Assets& assets, const DeviceTables& tables);

  int64_t width() const { return lookup_.width(); }

  struct Bags {
    DeviceUpload::Part<int32_t> lengths;
    DeviceUpload::Part<int64_t> rows;  // room for few sizes
  };

  // The users' bags, as the last of what is uploaded.
  Bags find_bags(const UserBatch& users, DeviceUpload& upload) const;

  // [users, width], when their bags are on the device; zeros for one of whom nothing is known.
  void pool(const CudaContext& context, const DeviceUpload& upload, const Bags& bags,
            Matrix<float> sparse) const;

 private:
  Lookup lookup_;
  std::vector<BagColumn> columns_;
};

// The stage `lookup` of candidates on a GPU, ids included: they come from a search there.
class DeviceCandidateLookup {
 public:
  // Throws as CandidateLookup does. `tables` must outlive it.
  DeviceCandidateLookup(const Manifest& manifest, const Assets& assets, const DeviceTables& tables,
                        int device);

  int64_t dim() const { return table_->dim; }

  // Items [users * n, dim] and scores [users, n], n at least 1. An empty slot reads row 0 and
  // score 0. `lengths` [users] are n each.
  void run(const CudaContext& context, const CandidateBatch& candidates,
           Span<const int32_t> lengths, Matrix<float> items, Matrix<float> scores) const;

 private:
  const EmbeddingTable* table_;  // on the device
  DeviceVocabulary vocabulary_;
};

}  // namespace recengine
