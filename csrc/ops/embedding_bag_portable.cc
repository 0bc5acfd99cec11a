#include <cstring>

#include "ops/embedding_bag_loop.h"

namespace recengine {
namespace {

float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  uint32_t bits;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    bits = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else if (magnitude >= 0x400u) {
    bits = sign | ((magnitude << 13) + ((127u - 15u) << 23));
  } else {  // subnormal: a multiple of 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float to_float(float value) { return value; }
float to_float(uint16_t half) { return half_to_float(half); }
float to_float(int8_t code) { return static_cast<float>(code); }

// Eight floats in a plain array; compilers turn the loops into the vectors of the base ISA.
struct Portable {
  static constexpr int kWidth = 8;
  struct Reg {
    float lanes[kWidth];
  };

  static Reg zero() { return broadcast(0); }
  static Reg broadcast(float value) {
    Reg reg;
    for (float& lane : reg.lanes) lane = value;
    return reg;
  }
  static Reg add(Reg a, const Reg& b) {
    for (int i = 0; i < kWidth; ++i) a.lanes[i] += b.lanes[i];
    return a;
  }
  static Reg mul(Reg a, const Reg& b) {
    for (int i = 0; i < kWidth; ++i) a.lanes[i] *= b.lanes[i];
    return a;
  }
  static Reg div(Reg a, const Reg& b) {
    for (int i = 0; i < kWidth; ++i) a.lanes[i] /= b.lanes[i];
    return a;
  }
  template <typename T>
  static Reg load(const T* values) {
    return load_part(values, kWidth);
  }
  template <typename T>
  static Reg load_part(const T* values, int count) {
    Reg reg = zero();
    for (int i = 0; i < count; ++i) reg.lanes[i] = to_float(values[i]);
    return reg;
  }
  static void store(float* out, const Reg& reg) { store_part(out, reg, kWidth); }
  static void store_part(float* out, const Reg& reg, int count) {
    for (int i = 0; i < count; ++i) out[i] = reg.lanes[i];
  }
};

}  // namespace

void embedding_bag_portable(const BagChunk& chunk) { embedding_bag_loop<Portable>(chunk); }

}  // namespace recengine
