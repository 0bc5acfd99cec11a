#pragma once

#include <cstdint>
#include <vector>

#include "engine/assets.h"
#include "engine/item_assets.h"
#include "engine/manifest.h"
#include "recengine/context.h"
#include "recengine/engine.h"

namespace recengine {

// What is thrown for the vector of a user that is not finite.
[[noreturn]] void fail_vector(int64_t user);

// The stage `topk`: user vectors -> nearest items.
class ItemSearch {
 public:
  ItemSearch(const Manifest& manifest, const Assets& assets, BundleFiles& files, ThreadPool& pool);

  int64_t dim() const { return items_.index.dim(); }
  int64_t threads_worth(int64_t users) const { return items_.index.threads_worth(users); }

  // `vectors` [known, dim] are those of the users `known`, ascending rows of the batch; the others
  // get the fallback list. Throws InputError naming the user whose vector is not finite.
  void run(const Context& context, const UserBatch& users, const std::vector<int64_t>& known,
           Matrix<const float> vectors, Recommendations out) const;

 private:
  struct Scratch;

  void search(const Context& context, const UserBatch& users, const std::vector<int64_t>& known,
              Matrix<const float> vectors, Recommendations out) const;

  ItemAssets items_;
};

}  // namespace recengine
