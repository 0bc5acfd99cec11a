#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/host_device.h"

namespace recengine {

// A finite score and a position below 2^32 as one integer: greater means better, that is a higher
// score or, at equal scores, a lower position.
RECENGINE_HOST_DEVICE inline uint64_t sort_key(float score, uint32_t position) {
  score += 0.0f;  // -0 equals +0
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t{ordered} << 32 | ~position;
}

RECENGINE_HOST_DEVICE inline uint32_t key_position(uint64_t key) {
  return ~static_cast<uint32_t>(key);
}

RECENGINE_HOST_DEVICE inline float key_score(uint64_t key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  const uint32_t bits = ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered;
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

}  // namespace recengine
