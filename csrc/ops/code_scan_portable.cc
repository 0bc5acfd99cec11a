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

void code_unpack_portable(const CodeHalves& halves, uint8_t* codes) {
  const int64_t pairs = halves.steps / 2;
  const int64_t of_last = pairs * kStepBytes;
  const int64_t end = std::min(2 * halves.end, halves.steps);
  for (int64_t step = 2 * halves.begin; step < end; ++step) {
    const int64_t pair = step / 2;
    for (int64_t group = 0; group < kBlockGroups; ++group) {
      const int64_t high_line = step * kStepBytes / 2 + group / 2 * kLineBytes;
      const int64_t low_line =
          pair == pairs ? of_last + group / 2 * kLineBytes : (group * pairs + pair) * kLineBytes;
      const int high_shift = group % 2 == 0 ? 4 : 0;
      const int low_shift = pair == pairs ? high_shift : step % 2 * 4;
      for (int64_t i = 0; i < kLineBytes; ++i) {
        const int high = halves.high[high_line + i] >> high_shift & 0x0f;
        const int low = halves.low[low_line + i] >> low_shift & 0x0f;
        *codes++ = static_cast<uint8_t>(high << 4 | low);
      }
    }
  }
}

uint64_t coarse_scan_portable(const CoarseTile& tile, int32_t* products) {
  for (int64_t i = 0; i < kBlockItems; ++i) products[i] = 0;
  for (int64_t step = 0; step < tile.steps; ++step) {
    const int8_t* const query = tile.query + step * kStepDims;
    for (int64_t pair = 0; pair < kBlockGroups / 2; ++pair) {
      const int64_t line = step * kStepBytes / 2 + pair * kLineBytes;
      const uint8_t* codes = tile.high + line;
      __builtin_prefetch(tile.ahead + line);
      int32_t* const sums = products + 2 * pair * kGroupItems;
      for (int64_t i = 0; i < kGroupItems; ++i) {
        for (int64_t d = 0; d < kStepDims; ++d, ++codes) {
          sums[i] += (*codes & kHighBits) * query[d];
          sums[kGroupItems + i] += (*codes << 4 & kHighBits) * query[d];
        }
      }
    }
  }
  uint64_t items = 0;
  for (int64_t i = 0; i < kBlockItems; ++i) {
    items |= uint64_t{products[i] >= tile.threshold} << i;
  }
  return items;
}

uint32_t low_scan_portable(const LowTile& tile, int32_t* products) {
  uint32_t items = 0;
  for (int64_t i = 0; i < kGroupItems; ++i) {
    for (int64_t step = 0; step < tile.steps; ++step) {
      const bool is_last = step == tile.steps / 2 * 2;
      const uint8_t* const line = is_last ? tile.last : tile.low + step / 2 * kLineBytes;
      const int shift = (is_last ? 1 - tile.group % 2 : step % 2) * 4;
      for (int64_t d = 0; d < kStepDims; ++d) {
        const int low = line[i * kStepDims + d] >> shift & 0x0f;
        products[i] += low * tile.query[step * kStepDims + d];
      }
    }
    items |= uint32_t{products[i] >= tile.threshold} << i;
  }
  return items;
}

}  // namespace recengine
