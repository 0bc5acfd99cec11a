#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "recengine/tensor.h"

namespace recengine {

inline int64_t count_from(Span<const float> values, float least) {
  int32_t count = 0;
  for (const float value : values) count += value >= least ? 1 : 0;
  return count;
}

// A value that at least `rank` of the values reach, and not many more; -inf when fewer are above
// that. By halving: the passes are vector code, where a selection mispredicts branches.
inline float value_of_rank(Span<const float> values, int64_t rank) {
  constexpr int kMostHalvings = 20;
  constexpr float kLeast = std::numeric_limits<float>::lowest();
  float low = std::numeric_limits<float>::max();
  float high = kLeast;
  for (const float value : values) {
    high = std::max(high, value);
    low = std::min(low, value < kLeast ? low : value);
  }
  if (count_from(values, low) < rank) return -std::numeric_limits<float>::infinity();
  for (int halving = 0; halving < kMostHalvings; ++halving) {
    const float middle = low + (high - low) / 2;
    const int64_t count = count_from(values, middle);
    (count < rank ? high : low) = middle;
    if (count >= rank && count <= rank + rank / 8) break;
  }
  return low;
}

// A sample of one item in `stride` holds about K / stride of the K best, more or fewer by chance.
// Its item of this rank is very likely none of them.
inline int64_t rank_in_sample(int64_t k, int64_t stride) {
  const double expected = static_cast<double>(k) / static_cast<double>(stride);
  return static_cast<int64_t>(expected + 3 * std::sqrt(expected) + 4);
}

// Of so many neighbours in a sample the best one stands for all: those of a high rank are rarely
// together, and where they are they count as few.
constexpr int64_t kSampleGroupItems = 16;

// What a guess takes from an estimate, in bounds of its error: few scores are further off, and a
// guess must hold also where many are nearly equal.
constexpr float kGuessMargin = 0.5f;

}  // namespace recengine
