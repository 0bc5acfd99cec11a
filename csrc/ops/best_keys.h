#pragma once

#include <cstdint>
#include <vector>

namespace recengine {

// The best `count` of some sort keys, best first; the others are dropped.
void sort_best(std::vector<uint64_t>& keys, int64_t count);

}  // namespace recengine
