#include "engine/row_checks.h"

#include <cstring>

namespace recengine {
namespace {

// True when all exponents are below the one that means NaN or infinity.
bool all_finite(const float* values, int64_t size) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < size; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    bad |= static_cast<uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
  }
  return bad == 0;
}

}  // namespace

void require_finite(ThreadPool& pool, const std::string& what, Matrix<const float> values) {
  require_finite_rows(pool, what, values.rows,
                      [&](int64_t row) { return all_finite(values.row(row), values.cols); });
}

}  // namespace recengine
