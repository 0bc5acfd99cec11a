#include "engine/chunk_digests.h"

#include <algorithm>
#include <utility>

#include "cpu/shared_by_key.h"
#include "engine/sha256.h"

namespace recengine {

std::shared_ptr<ChunkDigests> ChunkDigests::of(const MappedFile& file, int64_t chunk_bytes) {
  static SharedByKey<std::pair<FileIdentity, int64_t>, ChunkDigests> all;
  return all.get({file.identity(), chunk_bytes},
                 [&] { return std::make_shared<ChunkDigests>(file.bytes().size, chunk_bytes); });
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
