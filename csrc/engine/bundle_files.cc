#include "engine/bundle_files.h"

#include <algorithm>
#include <vector>

#include "cpu/thread_pool.h"
#include "engine/sha256.h"
#include "recengine/error.h"

namespace recengine {
namespace {

struct Chunk {
  const MappedFile* file;
  const FileEntry* entry;
  int64_t position;
};

void verify(const Chunk& chunk) {
  const int64_t offset = chunk.position * chunk.entry->chunk_bytes;
  const int64_t size = std::min(chunk.entry->chunk_bytes, chunk.entry->bytes - offset);
  const std::string found = to_hex(sha256({chunk.file->bytes().data + offset, size}));
  const std::string& expected = chunk.entry->sha256[static_cast<size_t>(chunk.position)];
  if (found != expected) {
    throw BundleError(chunk.file->path() + ": chunk " + std::to_string(chunk.position) +
                      ": expected SHA-256 " + expected + ", found " + found);
  }
}

}  // namespace

BundleFiles::BundleFiles(const std::string& directory, const Manifest& manifest, ThreadPool& pool) {
  std::vector<Chunk> chunks;
  for (const auto& [name, entry] : manifest.files) {
    const MappedFile& file = files_.emplace(name, MappedFile(directory, name)).first->second;
    if (file.bytes().size != entry.bytes) {
      throw BundleError(file.path() + ": expected " + std::to_string(entry.bytes) +
                        " bytes, found " + std::to_string(file.bytes().size));
    }
    for (size_t i = 0; i < entry.sha256.size(); ++i) {
      chunks.push_back({&file, &entry, static_cast<int64_t>(i)});
    }
  }
  pool.parallel_for(static_cast<int64_t>(chunks.size()),
                    [&](int64_t i) { verify(chunks[static_cast<size_t>(i)]); });
}

const Safetensors& BundleFiles::tensors(const std::string& name) {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return found->second;
  return tensors_.emplace(name, Safetensors(file(name))).first->second;
}

}  // namespace recengine
