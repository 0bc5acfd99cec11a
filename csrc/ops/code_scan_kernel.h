#pragma once

#include <cstdint>

#include "ops/item_codes.h"
#include "recengine/context.h"

namespace recengine {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kStepLines = kBlockItems * kStepDims / kLineBytes;

constexpr int kMostTileQueries = 16;
constexpr int kVectorTileQueries = 12;  // whose sums with 32 items fit the registers of AVX-512

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
  const int8_t* queries;      // as CodeScanKernel says
  int count;                  // 1 .. CodeScanKernel::tile_queries
  const int32_t* thresholds;  // query q's is [q * threshold_stride], up to +-kMostThreshold
  int64_t threshold_stride;
  // Lines of 64 bytes that will be scanned soon, to be fetched meanwhile: as many as the tile has
  // or, where the kernel says so, `ahead_lines`. Null: none.
  const uint8_t* ahead = nullptr;
  int64_t ahead_lines = 0;
};

struct CodeHits {
  // Of these: sums of code * query and their offset.
  alignas(64) int32_t products[kMostTileQueries][kBlockItems];
  uint64_t items[kMostTileQueries];  // bit i: item i of the block reaches the threshold
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

// How an instruction set scans.
struct CodeScanKernel {
  CodeScan scan;
  CodeThresholds thresholds;
  double product_cost;                    // of a dimension of a query and an item, in bytes read
  bool summed_in_16_bits = false;         // within kMostSummed
  int tile_queries = kVectorTileQueries;  // at most
  bool by_query = false;      // [tile_queries, steps, kStepDims], not [steps, count, kStepDims]
  bool shares_ahead = false;  // each tile of a block fetches its part of the block ahead
  // Around what a thread scans of tiles of so many steps and at most so many queries; null where
  // nothing is to be prepared.
  void (*begin)(int64_t steps, int64_t queries) = nullptr;
  void (*end)() = nullptr;
};

// The fastest for so many queries.
const CodeScanKernel& code_scan_for(Isa isa, int64_t queries);

void code_thresholds_portable(const ThresholdTerms& query, const float* errors,
                              const float* inverse_scales, int64_t blocks, int32_t* thresholds);
void code_thresholds_avx2(const ThresholdTerms& query, const float* errors,
                          const float* inverse_scales, int64_t blocks, int32_t* thresholds);
void code_thresholds_avx512_vnni(const ThresholdTerms& query, const float* errors,
                                 const float* inverse_scales, int64_t blocks, int32_t* thresholds);

uint32_t code_scan_portable(const CodeTile& tile, CodeHits& hits);
uint32_t code_scan_avx2(const CodeTile& tile, CodeHits& hits);
uint32_t code_scan_avx512_vnni(const CodeTile& tile, CodeHits& hits);
uint32_t code_scan_amx_int8(const CodeTile& tile, CodeHits& hits);
void code_scan_begin_amx_int8(int64_t steps, int64_t queries);
void code_scan_end_amx_int8();

}  // namespace recengine
