#include "engine/bundle_files.h"

#include <vector>

#include "cpu/thread_pool.h"
#include "recengine/error.h"

namespace recengine {
namespace {

struct Chunk {
  const MappedFile* file;
  ChunkDigests* digests;
  const std::string* expected;
  int64_t position;
};

// Others are dense graphs, of which OpenVINO has copies.
bool is_tensors(const std::string& name) {
  const std::string suffix = ".safetensors";
  return name.size() >= suffix.size() &&
         name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0;
}

void verify(const Chunk& chunk) {
  const std::string& found = chunk.digests->get(*chunk.file, chunk.position);
  if (found != *chunk.expected) {
    throw BundleError(chunk.file->path() + ": chunk " + std::to_string(chunk.position) +
                      ": expected SHA-256 " + *chunk.expected + ", found " + found);
  }
}

}  // namespace

BundleFiles::BundleFiles(const std::string& directory, const Manifest& manifest, ThreadPool& pool,
                         Residence resident) {
  const auto is_copied = [&](const std::string& name) {
    if (resident == Residence::kAll) return is_tensors(name);
    return resident == Residence::kCodes && manifest.retrieval &&
           manifest.retrieval->index.codes == name;
  };
  std::vector<Chunk> chunks;
  for (const auto& [name, entry] : manifest.files) {
    MappedFile& file = files_.emplace(name, MappedFile(directory, name)).first->second;
    if (file.bytes().size != entry.bytes) {
      throw BundleError(file.path() + ": expected " + std::to_string(entry.bytes) +
                        " bytes, found " + std::to_string(file.bytes().size));
    }
    if (is_copied(name)) file.make_resident(pool);
    digests_.push_back(ChunkDigests::of(file, entry.chunk_bytes));
    for (size_t i = 0; i < entry.sha256.size(); ++i) {
      chunks.push_back({&file, digests_.back().get(), &entry.sha256[i], static_cast<int64_t>(i)});
    }
  }
  pool.parallel_for(static_cast<int64_t>(chunks.size()),
                    [&](int64_t i) { verify(chunks[static_cast<size_t>(i)]); });
}

EngineMemory BundleFiles::memory() const {
  EngineMemory memory;
  std::vector<Span<const uint8_t>> resident;
  for (const auto& [name, file] : files_) {
    (file.is_resident() ? memory.resident : memory.mapped) += file.bytes().size;
    if (file.is_resident()) resident.push_back(file.bytes());
  }
  if (!resident.empty()) memory.huge = huge_page_bytes(resident);
  return memory;
}

const Safetensors& BundleFiles::tensors(const std::string& name) {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return found->second;
  return tensors_.emplace(name, Safetensors(file(name))).first->second;
}

}  // namespace recengine
