#pragma once

#include <cstdint>
#include <string>

namespace recengine {

// How one embedding row is stored.
enum class RowType : uint8_t { kFloat32, kFloat16, kInt8 };

// Bytes of one stored value: 4, 2 or 1.
int64_t row_type_bytes(RowType type);

// A borrowed view of embedding rows [rows, dim]. int8 rows carry one fp32 scale a row:
// value = scale * code. Whoever owns the memory outlives the view.
struct EmbeddingTable {
  std::string name;  // for messages
  const void* data = nullptr;
  int64_t rows = 0;
  int32_t dim = 0;
  RowType row_type = RowType::kFloat32;
  const float* scales = nullptr;  // [rows], kInt8 only
};

}  // namespace recengine
