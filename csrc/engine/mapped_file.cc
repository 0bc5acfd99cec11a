#include "engine/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "recengine/error.h"

namespace recengine {
namespace {

namespace fs = std::filesystem;

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

[[noreturn]] void fail(const std::string& path, int error) {
  throw BundleError(path + ": " + std::strerror(error));
}

bool has_parent_step(const fs::path& name) {
  for (const fs::path& part : name) {
    if (part == "..") return true;
  }
  return false;
}

// Where the file really is once links are followed; it must be below the directory.
std::string resolve(const std::string& directory, const std::string& name,
                    const std::string& path) {
  const fs::path relative(name);
  if (name.empty() || relative.is_absolute() || has_parent_step(relative)) {
    throw BundleError(directory + ": file \"" + name +
                      "\": expected a relative path inside the directory");
  }
  std::error_code error;
  const fs::path root = fs::canonical(directory, error);
  if (error) fail(directory, error.value());
  const fs::path real = fs::canonical(path, error);
  if (error) fail(path, error.value());
  const fs::path below = real.lexically_relative(root);
  if (below.empty() || *below.begin() == "..") {
    throw BundleError(path + ": leads outside the directory, to " + real.string());
  }
  return real.string();
}

int64_t nanoseconds(const timespec& time) {
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

MappedFile::MappedFile(const std::string& directory, const std::string& name)
    : path_((fs::path(directory) / name).string()) {
  const std::string real = resolve(directory, name, path_);
  // O_NONBLOCK: a named pipe must be refused below, not waited for.
  const Descriptor file(open(real.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW));
  if (file.get() < 0) fail(path_, errno);
  struct stat status = {};
  if (fstat(file.get(), &status) != 0) fail(path_, errno);
  if (!S_ISREG(status.st_mode)) throw BundleError(path_ + ": not a regular file");
  identity_ = {static_cast<int64_t>(status.st_dev), static_cast<int64_t>(status.st_ino),
               status.st_size, nanoseconds(status.st_mtim), nanoseconds(status.st_ctim)};
  if (status.st_size == 0) return;
  void* memory =
      mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_SHARED, file.get(), 0);
  if (memory == MAP_FAILED) fail(path_, errno);
  mapped_ = Span<const uint8_t>(static_cast<const uint8_t*>(memory), status.st_size);
  bytes_ = mapped_;
}

MappedFile::~MappedFile() { unmap(); }

void MappedFile::unmap() noexcept {
  if (mapped_.data != nullptr) {
    munmap(const_cast<uint8_t*>(mapped_.data), static_cast<size_t>(mapped_.size));
  }
  mapped_ = {};
}

void MappedFile::make_resident(ThreadPool& pool) {
  if (is_resident() || mapped_.size < kHugePage) return;
  copy_ = ResidentCopy::of(*this);
  bytes_ = copy_->fill(mapped_, pool);
  unmap();
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      identity_(other.identity_),
      mapped_(std::exchange(other.mapped_, {})),
      copy_(std::move(other.copy_)),
      bytes_(std::exchange(other.bytes_, {})) {}

}  // namespace recengine
