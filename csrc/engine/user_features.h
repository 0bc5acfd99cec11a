#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/assets.h"
#include "engine/manifest.h"
#include "recengine/engine.h"

namespace recengine {

// Vocabulary rows of one user's features.
struct FeatureRows {
  std::vector<int64_t> rows;
  std::vector<int64_t> ends;  // [features], positions in rows

  int64_t count(size_t feature) const {
    return ends[feature] - (feature == 0 ? 0 : ends[feature - 1]);
  }
};

// Which of a user's ids the bags of a model read, and what the vocabularies know of them.
class UserFeatures {
 public:
  UserFeatures(const Manifest& manifest, const std::vector<BagSpec>& bags, const Assets& assets);

  // Maps the ids that some bag reads; tells whether any of them is known.
  bool map(const int64_t* ids, const int32_t* lengths, FeatureRows& out) const;

  // The users of a batch of whom anything is known, ascending.
  void find_known(const UserBatch& users, std::vector<int64_t>& known) const;

 private:
  struct Feature {
    const Vocabulary* vocabulary;
    bool has_items;  // kNoItem among its ids is padding
    int64_t keep;    // the last ids that any bag reads; 0 when none does
  };

  std::vector<Feature> features_;  // in wire order
};

// Position of a feature on the wire; the manifest has it.
size_t find_feature(const Manifest& manifest, const std::string& name);

// How many of its feature's last ids a bag reads.
int64_t ids_read(const BagSpec& bag, const FeatureSpec& feature);

// The rows of `users`, ascending, copied to `storage` unless they are all of the batch's.
Matrix<const float> select_rows(Matrix<const float> batch, const std::vector<int64_t>& users,
                                std::vector<float>& storage);

}  // namespace recengine
