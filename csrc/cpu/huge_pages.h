#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "recengine/tensor.h"

namespace recengine {

constexpr int64_t kHugePage = int64_t{2} << 20;

struct FreeMemory {
  void operator()(void* memory) const;
};

template <typename T>
using HugeArray = std::unique_ptr<T[], FreeMemory>;

// Memory from a cache line on. From a huge page's size on, the system is asked for huge pages, with
// which random reads walk no page tables; it may give small ones: see huge_page_bytes().
void* allocate_bytes(int64_t bytes);

template <typename T>
HugeArray<T> allocate_huge(int64_t count) {
  return HugeArray<T>(static_cast<T*>(allocate_bytes(count * int64_t{sizeof(T)})));
}

// How much of these ranges is in huge pages now, by one look at /proc/self/smaps: exact for memory
// of allocate_huge() that has no neighbour of the same kind, else about.
int64_t huge_page_bytes(const std::vector<Span<const uint8_t>>& ranges);

}  // namespace recengine
