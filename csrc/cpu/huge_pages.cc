#include "cpu/huge_pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <new>
#include <string>

namespace recengine {
namespace {

constexpr int64_t kLineBytes = 64;

}  // namespace

void FreeMemory::operator()(void* memory) const { std::free(memory); }

void* allocate_bytes(int64_t bytes) {
  const int64_t page = bytes < kHugePage ? kLineBytes : kHugePage;
  const int64_t whole = (std::max<int64_t>(bytes, 1) + page - 1) / page * page;
  void* memory = std::aligned_alloc(static_cast<size_t>(page), static_cast<size_t>(whole));
  if (memory == nullptr) throw std::bad_alloc();
  if (page == kHugePage) madvise(memory, static_cast<size_t>(whole), MADV_HUGEPAGE);
  return memory;
}

int64_t huge_page_bytes(const void* memory, int64_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t end = begin + static_cast<uintptr_t>(bytes);
  int64_t total = 0;
  int64_t overlap = 0;  // of the mapping that is being read
  std::ifstream maps("/proc/self/smaps");
  for (std::string line; std::getline(maps, line);) {
    uintptr_t from = 0;
    uintptr_t to = 0;
    int64_t kilobytes = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2) {
      from = std::max(from, begin);
      to = std::min(to, end);
      overlap = to > from ? static_cast<int64_t>(to - from) : 0;
    } else if (overlap > 0 &&
               std::sscanf(line.c_str(), "AnonHugePages: %" SCNd64, &kilobytes) == 1) {
      total += std::min(overlap, kilobytes << 10);
    }
  }
  return total;
}

}  // namespace recengine
