#pragma once

#include <cstdint>

namespace recengine {

// The 16 lanes of the score's definition (cosine_topk.h): queries are padded to a multiple of it.
constexpr int64_t kScoreLanes = 16;

// Items of one block: row-major [count, dim], count at most kMaxBlockItems.
struct ItemBlock {
  const float* items;
  int64_t count;
  int64_t dim;
};
constexpr int64_t kMaxBlockItems = 512;

// Scores a block against one query (padded with zeros) and writes position and score of every item
// above `threshold`, in order of position. Returns how many.
using CosineScan = int64_t (*)(const ItemBlock& block, const float* query, float threshold,
                               int32_t* positions, float* scores);

int64_t cosine_scan_portable(const ItemBlock& block, const float* query, float threshold,
                             int32_t* positions, float* scores);
int64_t cosine_scan_avx2(const ItemBlock& block, const float* query, float threshold,
                         int32_t* positions, float* scores);
int64_t cosine_scan_avx512(const ItemBlock& block, const float* query, float threshold,
                           int32_t* positions, float* scores);

}  // namespace recengine
