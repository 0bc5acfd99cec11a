#include <cstring>

#include "ops/embedding_bag_loop.h"

namespace recengine {
namespace {

float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

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
  return bits_to_float(bits);
}

// Value i of those that begin at `values`.
float read(const float* values, int i) { return values[i]; }
float read(const Half* values, int i) { return half_to_float(values[i].bits); }
float read(const Bfloat* values, int i) { return bits_to_float(uint32_t{values[i].bits} << 16); }
float read(const int8_t* codes, int i) { return static_cast<float>(codes[i]); }
float read(const uint8_t* codes, int i) { return static_cast<float>(codes[i]); }
float read(const Nibbles* codes, int i) {
  const uint8_t pair = codes[i / 2].pair;
  return static_cast<float>(i % 2 == 0 ? pair & 15 : pair >> 4);
}

// Eight floats in a plain array; compilers turn the loops into the vectors of the base ISA.
struct Portable : InBlocks {
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
    for (int i = 0; i < count; ++i) reg.lanes[i] = read(values, i);
    return reg;
  }
  template <typename T>
  static Reg spread(float factor) {
    return broadcast(factor);
  }
  template <typename T>
  static Reg scaled(const T* values, const Reg& factors) {
    return mul(load(values), factors);
  }
  static ScaleAndBias load_halves(const char* at) {
    uint16_t halves[2];
    std::memcpy(halves, at, sizeof halves);
    return {half_to_float(halves[0]), half_to_float(halves[1])};
  }
  static void store(float* out, const Reg& reg) { store_part(out, reg, kWidth); }
  static void store_part(float* out, const Reg& reg, int count) {
    for (int i = 0; i < count; ++i) out[i] = reg.lanes[i];
  }
};

}  // namespace

bool embedding_bag_portable(const BagChunk& chunk) { return embedding_bag_loop<Portable>(chunk); }

}  // namespace recengine
