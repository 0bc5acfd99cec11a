#pragma once

#include <cstdint>

#include "ops/item_codes.h"

namespace recengine {

constexpr int kTileQueries = 12;  // whose sums with 32 items fit the registers

// Less a threshold, a product still fits 32 bits.
constexpr int32_t kMostThreshold = 3 << 29;
static_assert(int64_t{255} * 127 * kMostCodedDims + kMostThreshold <= INT32_MAX);

// Kernels may sum the products of so many neighbouring dimensions of some steps in 16 bits. What
// the query's codes of one sign may add up to there, whatever the items' codes:
constexpr int64_t kSummedDims = 2;
constexpr int64_t kSummedSteps = 4;
constexpr int kMostSummed = INT16_MAX / 255;

// One block of items against a few queries.
struct CodeTile {
  const uint8_t* codes;       // as ItemCodes::block() gives them
  int64_t steps;              // of kStepDims dimensions
  const int8_t* queries;      // [steps, count, kStepDims]
  int count;                  // 1 .. kTileQueries
  const int32_t* thresholds;  // query q's is [q * threshold_stride], up to +-kMostThreshold
  int64_t threshold_stride;
  const uint8_t* ahead;  // a block that will be scanned soon, to be fetched meanwhile; or null
};

struct CodeHits {
  uint64_t items[kTileQueries];                 // bit i: item i of the block reaches the threshold
  int32_t products[kTileQueries][kBlockItems];  // of these: sums of code * query and their offset
};

// Says in bit q whether query q has hits, and only then writes them.
using CodeScan = uint32_t (*)(const CodeTile& tile, CodeHits& hits);

// What a query's thresholds are made of.
struct ThresholdTerms {
  float wanted;         // what the score of an item must reach, less the query's slack
  float error_share;    // of a block's error that is added to estimates
  float inverse_scale;  // of the query's codes
  int32_t offset;       // what the items' offset adds to products
};
constexpr float kLargestThreshold = 1e9f;  // beyond any sum of products

// Writes the least product with which an item of each block can still be wanted: rounded down, and
// by one more for what fp32 has rounded up. All arrays are [blocks].
using CodeThresholds = void (*)(const ThresholdTerms& query, const float* errors,
                                const float* inverse_scales, int64_t blocks, int32_t* thresholds);

void code_thresholds_portable(const ThresholdTerms& query, const float* errors,
                              const float* inverse_scales, int64_t blocks, int32_t* thresholds);
void code_thresholds_avx2(const ThresholdTerms& query, const float* errors,
                          const float* inverse_scales, int64_t blocks, int32_t* thresholds);
void code_thresholds_avx512_vnni(const ThresholdTerms& query, const float* errors,
                                 const float* inverse_scales, int64_t blocks, int32_t* thresholds);

uint32_t code_scan_portable(const CodeTile& tile, CodeHits& hits);
uint32_t code_scan_avx2(const CodeTile& tile, CodeHits& hits);  // within kMostSummed
uint32_t code_scan_avx512_vnni(const CodeTile& tile, CodeHits& hits);

}  // namespace recengine
