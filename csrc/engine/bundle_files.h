#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/chunk_digests.h"
#include "engine/manifest.h"
#include "engine/mapped_file.h"
#include "engine/safetensors.h"
#include "recengine/context.h"
#include "recengine/engine.h"

namespace recengine {

// The files that a manifest lists, mapped and verified.
class BundleFiles {
 public:
  // Maps every file, or copies it into memory, and checks its size and chunk hashes, in parallel on
  // `pool`. Throws BundleError naming the file that is missing, of another size or changed.
  BundleFiles(const std::string& directory, const Manifest& manifest, ThreadPool& pool,
              Residence resident);

  const MappedFile& file(const std::string& name) const { return files_.at(name); }

  EngineMemory memory() const;

  // The tensors of a file that the manifest lists.
  const Safetensors& tensors(const std::string& name);

 private:
  std::map<std::string, MappedFile> files_;
  std::vector<std::shared_ptr<ChunkDigests>> digests_;  // kept for others who load these files
  std::map<std::string, Safetensors> tensors_;          // parsed when first asked for
};

}  // namespace recengine
