#pragma once

#include <cstdint>

#include "ops/item_codes.h"

namespace recengine {

constexpr int kTileQueries = 6;  // whose sums fit the registers beside a block's step

// One block of items against a few queries.
struct CodeTile {
  const uint8_t* codes;       // as ItemCodes::block() gives them
  int64_t steps;              // of kStepDims dimensions
  const int8_t* queries;      // [count, steps * kStepDims]
  int count;                  // 1 .. kTileQueries
  const int32_t* thresholds;  // query q's is [q * threshold_stride]
  int64_t threshold_stride;
  const uint8_t* ahead;  // a block that will be scanned soon, to be fetched meanwhile; or null
};

struct CodeHits {
  uint64_t items[kTileQueries];                 // bit i: item i of the block reaches the threshold
  int32_t products[kTileQueries][kBlockItems];  // sums of code * query, with their offset
};

// Says in bit q whether query q has hits, and only then writes them.
using CodeScan = uint32_t (*)(const CodeTile& tile, CodeHits& hits);

uint32_t code_scan_portable(const CodeTile& tile, CodeHits& hits);
uint32_t code_scan_avx2(const CodeTile& tile, CodeHits& hits);
uint32_t code_scan_avx512_vnni(const CodeTile& tile, CodeHits& hits);

}  // namespace recengine
