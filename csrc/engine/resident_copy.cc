#include "engine/resident_copy.h"

#include <algorithm>
#include <cstring>

#include "cpu/shared_by_key.h"
#include "engine/mapped_file.h"

namespace recengine {
namespace {

constexpr int64_t kPieceBytes = int64_t{16} << 20;

}  // namespace

std::shared_ptr<ResidentCopy> ResidentCopy::of(const MappedFile& file) {
  static SharedByKey<FileIdentity, ResidentCopy> all;
  return all.get(file.identity(),
                 [&file] { return std::make_shared<ResidentCopy>(file.bytes().size); });
}

Span<const uint8_t> ResidentCopy::fill(Span<const uint8_t> mapped, ThreadPool& pool) {
  std::call_once(once_, [&] {
    auto memory = allocate_huge<uint8_t>(bytes_);
    pool.parallel_for((bytes_ + kPieceBytes - 1) / kPieceBytes, [&](int64_t piece) {
      const int64_t begin = piece * kPieceBytes;
      const int64_t size = std::min(kPieceBytes, bytes_ - begin);
      std::memcpy(memory.get() + begin, mapped.data + begin, static_cast<size_t>(size));
    });
    memory_ = std::move(memory);
  });
  return {memory_.get(), bytes_};
}

}  // namespace recengine
