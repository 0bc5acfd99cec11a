#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include "cpu/huge_pages.h"
#include "cpu/thread_pool.h"
#include "recengine/tensor.h"

namespace recengine {

class MappedFile;

// A file's contents in memory of the process, in huge pages where the system gives them; one for
// all who have the file open, as ChunkDigests are.
class ResidentCopy {
 public:
  static std::shared_ptr<ResidentCopy> of(const MappedFile& file);

  explicit ResidentCopy(int64_t bytes) : bytes_(bytes) {}

  // What the file holds, copied by the first who asks; others wait for that.
  Span<const uint8_t> fill(Span<const uint8_t> mapped, ThreadPool& pool);

 private:
  int64_t bytes_;
  std::once_flag once_;
  HugeArray<uint8_t> memory_;
};

}  // namespace recengine
