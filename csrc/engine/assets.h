#pragma once

#include <map>
#include <string>

#include "engine/bundle_files.h"
#include "engine/manifest.h"
#include "recengine/context.h"
#include "recengine/table.h"
#include "recengine/vocabulary.h"

namespace recengine {

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

}  // namespace recengine
