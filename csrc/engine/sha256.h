#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "recengine/tensor.h"

namespace recengine {

using Sha256Digest = std::array<uint8_t, 32>;

// The SHA-256 of `bytes` (FIPS 180-4), with the CPU's SHA extensions where it has them.
Sha256Digest sha256(Span<const uint8_t> bytes);

// The same without the extensions; tests compare the two.
Sha256Digest sha256_portable(Span<const uint8_t> bytes);

// 64 lower-case hexadecimal digits.
std::string to_hex(const Sha256Digest& digest);

}  // namespace recengine
