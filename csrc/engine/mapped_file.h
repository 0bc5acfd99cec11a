#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/resident_copy.h"
#include "recengine/tensor.h"

namespace recengine {

// What a file system tells a file and its state by: device, inode, bytes, and in nanoseconds when
// contents and inode were last changed.
using FileIdentity = std::array<int64_t, 5>;

// A file of a version directory, mapped read-only for as long as the object lives.
class MappedFile {
 public:
  // `name` is a relative path. Throws BundleError naming the file when it is missing, is not a
  // regular file, or lies outside `directory`, be it by "..", an absolute path or a symbolic link.
  MappedFile(const std::string& directory, const std::string& name);
  ~MappedFile();

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  // From now on its bytes are a copy in memory, in huge pages where the system gives them. A file
  // of less than one stays mapped.
  void make_resident(ThreadPool& pool);

  Span<const uint8_t> bytes() const { return bytes_; }
  bool is_resident() const { return copy_ != nullptr; }

  const FileIdentity& identity() const { return identity_; }

  // Where the file is, for messages.
  const std::string& path() const { return path_; }

 private:
  void unmap() noexcept;

  std::string path_;
  FileIdentity identity_ = {};
  Span<const uint8_t> mapped_;
  std::shared_ptr<ResidentCopy> copy_;
  Span<const uint8_t> bytes_;  // of one of both
};

}  // namespace recengine
