#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/assets.h"
#include "engine/item_assets.h"
#include "engine/manifest.h"
#include "recengine/cuda.h"
#include "recengine/device_item_index.h"
#include "recengine/engine.h"

namespace recengine {

// The stage `topk` on a GPU.
class DeviceItemSearch {
 public:
  DeviceItemSearch(const Manifest& manifest, const Assets& assets, BundleFiles& files,
                   ThreadPool& pool, int device);

  int64_t dim() const { return index_.dim(); }

  // `vectors` [users, dim] and `out` [users, k]; users that are not `known`, ascending rows of the
  // batch, get the fallback list. Throws InputError naming the known user whose vector is not
  // finite; the vectors of others may be. `slot` is that of the context, or null.
  void run(const CudaContext& context, DeviceSlot* slot, const UserBatch& users,
           const std::vector<int64_t>& known, Matrix<const float> vectors,
           Recommendations out) const;

 private:
  ItemAssets items_;  // without the index
  DeviceItemIndex index_;
  std::shared_ptr<void> keys_;  // int64 [rows] on the device
};

}  // namespace recengine
