#pragma once

#include <cstdint>
#include <string>

#include "recengine/tensor.h"

namespace recengine {

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

  Span<const uint8_t> bytes() const { return bytes_; }

  // Where the file is, for messages.
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  Span<const uint8_t> bytes_;
};

}  // namespace recengine
