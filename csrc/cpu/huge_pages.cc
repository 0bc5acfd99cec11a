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

int64_t huge_page_bytes(const std::vector<Span<const uint8_t>>& ranges) {
  int64_t total = 0;
  std::vector<int64_t> overlaps;  // of the ranges with the mapping that is being read
  std::ifstream maps("/proc/self/smaps");
  for (std::string line; std::getline(maps, line);) {
    uintptr_t from = 0;
    uintptr_t to = 0;
    int64_t kilobytes = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2) {
      overlaps.clear();
      for (const Span<const uint8_t> range : ranges) {
        const uintptr_t begin = std::max(from, reinterpret_cast<uintptr_t>(range.begin()));
        const uintptr_t end = std::min(to, reinterpret_cast<uintptr_t>(range.end()));
        if (begin < end) overlaps.push_back(static_cast<int64_t>(end - begin));
      }
    } else if (!overlaps.empty() &&
               std::sscanf(line.c_str(), "AnonHugePages: %" SCNd64, &kilobytes) == 1) {
      for (const int64_t overlap : overlaps) total += std::min(overlap, kilobytes << 10);
    }
  }
  return total;
}

}  // namespace recengine
