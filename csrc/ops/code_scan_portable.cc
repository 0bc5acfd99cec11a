#include <algorithm>

#include "ops/code_scan_kernel.h"

namespace recengine {

void code_thresholds_portable(const ThresholdTerms& query, const float* errors,
                              const float* inverse_scales, int64_t blocks, int32_t* thresholds) {
  for (int64_t b = 0; b < blocks; ++b) {
    const float product =
        (query.wanted - errors[b] * query.error_share) * (query.inverse_scale * inverse_scales[b]);
    const float clamped = std::max(-kLargestThreshold, std::min(product, kLargestThreshold));
    thresholds[b] = static_cast<int32_t>(clamped) - 2 + query.offset;
  }
}

uint32_t code_scan_portable(const CodeTile& tile, CodeHits& hits) {
  uint32_t any = 0;
  for (int q = 0; q < tile.count; ++q) {
    const int32_t threshold = tile.thresholds[q * tile.threshold_stride];
    int32_t* products = hits.products[q];
    for (int64_t i = 0; i < kBlockItems; ++i) products[i] = 0;
    for (int64_t step = 0; step < tile.steps; ++step) {
      const uint8_t* codes = tile.codes + step * kStepDims * kBlockItems;
      const int8_t* part = tile.queries + (step * tile.count + q) * kStepDims;
      for (int64_t i = 0; i < kBlockItems; ++i) {
        const uint8_t* item = codes + i * kStepDims;
        products[i] +=
            item[0] * part[0] + item[1] * part[1] + item[2] * part[2] + item[3] * part[3];
      }
    }
    uint64_t items = 0;
    for (int64_t i = 0; i < kBlockItems; ++i) {
      items |= uint64_t{products[i] >= threshold} << i;
    }
    hits.items[q] = items;
    if (items != 0) any |= 1u << q;
  }
  return any;
}

}  // namespace recengine
