#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/mapped_file.h"

namespace recengine {

// The SHA-256 of each chunk of a file, computed once for all who have the file open: the models of
// a repository share tables of gigabytes, and load at the same time. A new hard link changes the
// inode: a version that is published later is hashed anew.
class ChunkDigests {
 public:
  // Those of this file, as long as somebody keeps them and the file stands unchanged.
  static std::shared_ptr<ChunkDigests> of(const MappedFile& file, int64_t chunk_bytes);

  ChunkDigests(int64_t bytes, int64_t chunk_bytes);

  // The digest of a chunk of `file`, in hexadecimal. Waits when another thread is computing it.
  const std::string& get(const MappedFile& file, int64_t chunk);

 private:
  struct Digest {
    std::once_flag once;
    std::string hex;
  };

  int64_t chunk_bytes_;
  std::vector<Digest> digests_;
};

}  // namespace recengine
