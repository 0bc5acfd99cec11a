#pragma once

#include <cstdint>

#include "ops/item_codes.h"
#include "recengine/context.h"

namespace recengine {

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

// Lines of a block that will be read soon, to be fetched meanwhile: of the halves of its codes.
struct CodesAhead {
  const uint8_t* high = nullptr;
  const uint8_t* low = nullptr;
  int64_t lines = 0;  // of each
};

// One block of items against a few queries.
struct CodeTile {
  const uint8_t* codes;       // [steps, kBlockItems, kStepDims]
  int64_t steps;              // of kStepDims dimensions
  const int8_t* queries;      // as CodeScanKernel says
  int count;                  // 1 .. CodeScanKernel::tile_queries
  const int32_t* thresholds;  // query q's is [q * threshold_stride], up to +-kMostThreshold
  int64_t threshold_stride;
  CodesAhead ahead;  // as many lines as of this block, or none; fewer where the kernel says so
};

struct CodeHits {
  // Of these: sums of code * query and their offset.
  alignas(64) int32_t products[kMostTileQueries][kBlockItems];
  uint64_t items[kMostTileQueries];  // bit i: item i of the block reaches the threshold
};

// Says in bit q whether query q has hits, and only then writes them.
using CodeScan = uint32_t (*)(const CodeTile& tile, CodeHits& hits);

// The halves of a block's codes as ItemCodes keeps them, to be put together.
struct CodeHalves {
  const uint8_t* high;
  const uint8_t* low;
  int64_t steps;  // of the block
  int64_t begin;  // pairs of steps: these are put together; the last may be one step
  int64_t end;
  const uint8_t* ahead_high;  // of a block whose pairs will be read soon, to be fetched meanwhile;
  const uint8_t* ahead_low;   // null: none
};

// Writes codes [steps of the pairs, kBlockItems, kStepDims].
using CodeUnpack = void (*)(const CodeHalves& halves, uint8_t* codes);

constexpr int64_t kMostCoarseQueries = 2;  // of more the products take longer than the reading

// The high bits of one block against one query.
struct CoarseTile {
  const uint8_t* high;
  int64_t steps;
  const int8_t* query;   // [steps, kStepDims]
  int32_t threshold;     // up to +-kMostThreshold
  const uint8_t* ahead;  // as many lines that will be scanned soon, to be fetched meanwhile
};

// Says which items reach the threshold and, where any does, writes the products of all
// [kBlockItems].
using CoarseScan = uint64_t (*)(const CoarseTile& tile, int32_t* products);

// The low bits of a group of 16 items against one query.
struct LowTile {
  const uint8_t* low;   // of the group, whole pairs of steps
  const uint8_t* last;  // line of the odd step; null where there is none
  int group;            // of the block
  int64_t steps;
  const int8_t* query;  // [steps, kStepDims]
  int32_t threshold;
};

// Adds their products to those of the high bits [kGroupItems], and says which items reach the
// threshold.
using LowScan = uint32_t (*)(const LowTile& tile, int32_t* products);

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
  CodeUnpack unpack;
  CoarseScan scan_coarse;
  LowScan scan_low;
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
void code_unpack_portable(const CodeHalves& halves, uint8_t* codes);
uint64_t coarse_scan_portable(const CoarseTile& tile, int32_t* products);
uint32_t low_scan_portable(const LowTile& tile, int32_t* products);

uint32_t code_scan_avx2(const CodeTile& tile, CodeHits& hits);
void code_unpack_avx2(const CodeHalves& halves, uint8_t* codes);
uint64_t coarse_scan_avx2(const CoarseTile& tile, int32_t* products);
uint32_t low_scan_avx2(const LowTile& tile, int32_t* products);

uint32_t code_scan_avx512_vnni(const CodeTile& tile, CodeHits& hits);
void code_unpack_avx512_vnni(const CodeHalves& halves, uint8_t* codes);
uint64_t coarse_scan_avx512_vnni(const CoarseTile& tile, int32_t* products);
uint32_t low_scan_avx512_vnni(const LowTile& tile, int32_t* products);

uint32_t code_scan_amx_int8(const CodeTile& tile, CodeHits& hits);
void code_scan_begin_amx_int8(int64_t steps, int64_t queries);
void code_scan_end_amx_int8();

}  // namespace recengine
