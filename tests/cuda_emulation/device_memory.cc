#include "device_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <string>

namespace cuda_emulation {
namespace {

constexpr size_t kAlignment = 256;         // of cudaMalloc
constexpr size_t kPage = size_t{2} << 20;  // large ones, so that to protect them is cheap

#ifdef __SANITIZE_ADDRESS__
constexpr bool kProtected = false;
#else
constexpr bool kProtected = true;
#endif

size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

class DeviceMemory {
 public:
  void* take(size_t bytes) {
    if (bytes > kDeviceBytes) return nullptr;
    const std::lock_guard<std::mutex> lock(mutex_);
    char* const begin = kProtected ? find_gap(rounded(bytes, kAlignment)) : allocate(bytes);
    if (begin == nullptr) return nullptr;
    allocations_[begin] = bytes;
    taken_ += bytes;
    return begin;
  }

  bool give_back(void* pointer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = allocations_.find(static_cast<const char*>(pointer));
    if (found == allocations_.end()) return false;
    std::memset(pointer, 0xcd, found->second);  // what is read after it shows, too
    taken_ -= found->second;
    allocations_.erase(found);
    if (!kProtected) std::free(pointer);
    return true;
  }

  bool holds(const char* begin, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto after = allocations_.upper_bound(begin);
    if (after == allocations_.begin()) return false;
    const auto& [at, size] = *--after;
    return begin + bytes <= at + size;
  }

  size_t taken() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return taken_;
  }

  void open() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (users_++ == 0) protect(PROT_READ | PROT_WRITE);
  }

  void close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--users_ == 0) protect(PROT_NONE);
  }

 private:
  static char* allocate(size_t bytes) {
    void* pointer = nullptr;
    return posix_memalign(&pointer, kAlignment, bytes) == 0 ? static_cast<char*>(pointer) : nullptr;
  }

  // The first place of so many bytes, with some unused ones before the next.
  char* find_gap(size_t bytes) {
    if (arena_ == nullptr && !reserve()) return nullptr;
    char* begin = arena_;
    for (const auto& [at, size] : allocations_) {
      if (begin + bytes + kAlignment <= at) break;
      begin = const_cast<char*>(at) + rounded(size, kAlignment) + kAlignment;
    }
    if (begin + bytes > arena_ + kDeviceBytes) return nullptr;
    const size_t used = rounded(static_cast<size_t>(begin + bytes - arena_), kPage);
    if (used > used_) {
      used_ = used;
      if (users_ > 0) protect(PROT_READ | PROT_WRITE);
    }
    return begin;
  }

  bool reserve() {
    void* const space = mmap(nullptr, kDeviceBytes + kPage, PROT_NONE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED) return false;
    arena_ = reinterpret_cast<char*>(rounded(reinterpret_cast<uintptr_t>(space), kPage));
    madvise(arena_, kDeviceBytes, MADV_HUGEPAGE);
    return true;
  }

  void protect(int access) {
    if (used_ == 0 || mprotect(arena_, used_, access) == 0) return;
    std::perror("cuda_emulation: mprotect");
    std::abort();
  }

  std::mutex mutex_;
  std::map<const char*, size_t> allocations_;  // where they begin, and their bytes
  size_t taken_ = 0;
  char* arena_ = nullptr;
  size_t used_ = 0;  // of the arena, ever
  int users_ = 0;
};

// Never destroyed: a process may give memory back while it ends.
DeviceMemory& memory() {
  static DeviceMemory& one = *new DeviceMemory;
  return one;
}

// Adds how many bytes were taken, as a line, to the file that CUDA_EMULATED_ALLOCATIONS names.
void list_allocation(size_t bytes) {
  static const char* const path = std::getenv("CUDA_EMULATED_ALLOCATIONS");
  if (path != nullptr) std::ofstream(path, std::ios::app) << std::to_string(bytes) + "\n";
}

}  // namespace

void* take_device_memory(size_t bytes) {
  void* const pointer = memory().take(bytes);
  if (pointer == nullptr) return nullptr;
  list_allocation(bytes);
  const DeviceAccess access;
  std::memset(pointer, 0xcd, bytes);  // what is read before it is written shows
  return pointer;
}

bool give_back_device_memory(void* pointer) {
  const DeviceAccess access;
  return memory().give_back(pointer);
}

bool on_device(const void* pointer, size_t bytes) {
  return memory().holds(static_cast<const char*>(pointer), bytes);
}

size_t device_bytes_taken() { return memory().taken(); }

DeviceAccess::DeviceAccess() { memory().open(); }
DeviceAccess::~DeviceAccess() { memory().close(); }

}  // namespace cuda_emulation
