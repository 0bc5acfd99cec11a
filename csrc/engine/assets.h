#pragma once

#include <map>
#include <string>

#include "engine/bundle_files.h"
#include "engine/manifest.h"
#include "recengine/context.h"
#include "recengine/item_index.h"
#include "recengine/table.h"
#include "recengine/vocabulary.h"

namespace recengine {

// Index of a retrieval stage and the answer for users with nothing known, over mapped memory.
struct ItemAssets {
  ItemIndex index;
  Span<const int64_t> keys;           // [rows], raw id of each index row
  Span<const int64_t> fallback_rows;  // index rows, best first
  Span<const float> fallback_scores;
};

// Vocabularies and tables of a version directory, checked: sizes against the manifest, finite
// values, vocabulary rows in range. Everything borrows the mapped files.
class Assets {
 public:
  // Throws BundleError naming the vocabulary or table and the row.
  Assets(const Manifest& manifest, BundleFiles& files, ThreadPool& pool);

  const Vocabulary& vocabulary(const std::string& name) const { return vocabularies_.at(name); }
  const EmbeddingTable& table(const std::string& name) const { return tables_.at(name); }

 private:
  std::map<std::string, Vocabulary> vocabularies_;
  std::map<std::string, EmbeddingTable> tables_;
};

// Throws BundleError when vectors are not of unit length (or zero), when the item vocabulary does
// not map key r to row r + 1, or when the fallback names a row that the index lacks.
ItemAssets load_items(const RetrievalSpec& spec, const Vocabulary& item_vocabulary,
                      BundleFiles& files, ThreadPool& pool);

}  // namespace recengine
