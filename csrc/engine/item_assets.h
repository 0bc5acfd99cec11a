#pragma once

#include <cstdint>
#include <vector>

#include "engine/bundle_files.h"
#include "engine/manifest.h"
#include "recengine/context.h"
#include "recengine/engine.h"
#include "recengine/item_index.h"
#include "recengine/vocabulary.h"

namespace recengine {

// Index of a retrieval stage and the answer for users with nothing known, over mapped memory.
struct ItemAssets {
  ItemIndex index;
  Span<const int64_t> keys;           // [rows], raw id of each index row
  Span<const int64_t> fallback_rows;  // index rows, best first
  Span<const float> fallback_scores;
  const Vocabulary* vocabulary = nullptr;

  // Appends the index rows of one user's excluded items; unknown ids are no items.
  void append_excluded(const UserBatch& users, int64_t user, std::vector<int64_t>& rows) const;

  // The fallback list without the user's excluded items; both spans are [k].
  void fall_back(const UserBatch& users, int64_t user, Span<int64_t> item_ids,
                 Span<float> scores) const;
};

// Throws BundleError when vectors are not of unit length (or zero), when the item vocabulary does
// not map key r to row r + 1, or when the fallback names a row that the index lacks.
ItemAssets load_items(const RetrievalSpec& spec, const Vocabulary& item_vocabulary,
                      BundleFiles& files, ThreadPool& pool);

}  // namespace recengine
