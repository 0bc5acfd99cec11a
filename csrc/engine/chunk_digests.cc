#include "engine/chunk_digests.h"

#include <algorithm>
#include <map>
#include <utility>

#include "engine/sha256.h"

namespace recengine {
namespace {

using Key = std::pair<FileIdentity, int64_t>;  // and the bytes of a chunk

struct Registry {
  std::mutex mutex;
  std::map<Key, std::weak_ptr<ChunkDigests>> entries;
};

Registry& registry() {
  static Registry instance;
  return instance;
}

}  // namespace

std::shared_ptr<ChunkDigests> ChunkDigests::of(const MappedFile& file, int64_t chunk_bytes) {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  for (auto entry = all.entries.begin(); entry != all.entries.end();) {
    entry = entry->second.expired() ? all.entries.erase(entry) : std::next(entry);
  }
  std::weak_ptr<ChunkDigests>& kept = all.entries[{file.identity(), chunk_bytes}];
  std::shared_ptr<ChunkDigests> digests = kept.lock();
  if (digests == nullptr) {
    digests = std::make_shared<ChunkDigests>(file.bytes().size, chunk_bytes);
    kept = digests;
  }
  return digests;
}

// An empty file has one empty chunk.
ChunkDigests::ChunkDigests(int64_t bytes, int64_t chunk_bytes)
    : chunk_bytes_(chunk_bytes),
      digests_(static_cast<size_t>(bytes == 0 ? 1 : (bytes - 1) / chunk_bytes + 1)) {}

const std::string& ChunkDigests::get(const MappedFile& file, int64_t chunk) {
  Digest& digest = digests_.at(static_cast<size_t>(chunk));
  std::call_once(digest.once, [&] {
    const int64_t offset = chunk * chunk_bytes_;
    const int64_t size = std::min(chunk_bytes_, file.bytes().size - offset);
    digest.hex = to_hex(sha256({file.bytes().data + offset, size}));
  });
  return digest.hex;
}

}  // namespace recengine
