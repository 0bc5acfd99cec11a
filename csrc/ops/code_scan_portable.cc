#include "ops/code_scan_kernel.h"

namespace recengine {

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
