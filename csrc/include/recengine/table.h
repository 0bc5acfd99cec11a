#pragma once

#include <cstdint>
#include <string>

namespace recengine {

// How one embedding row is stored. kInt8: symmetric codes, one fp32 scale a row beside them. Fused:
// unsigned codes with the row's scale and bias inline; 4-bit codes lie in pairs, the first one low.
enum class RowType : uint8_t { kFloat32, kFloat16, kBfloat16, kInt8, kFusedInt8, kFusedInt4 };

// Where fused rows keep scale and bias. kTbe: fp16, ahead of the codes, as in the tables of
// FBGEMM's and TorchRec's IntNBitTableBatchedEmbeddingBags. kRowwise: behind the codes, fp32 with
// 8-bit and fp16 with 4-bit codes, as torch's and FBGEMM's rowwise quantisation writes them.
enum class FusedLayout : uint8_t { kTbe, kRowwise };

struct RowCacheState;

// A borrowed view of embedding rows [rows, dim]: value = scale * code + bias where rows are
// quantised. Whoever owns the memory outlives the view. Made by the functions below.
struct EmbeddingTable {
  std::string name;  // for messages
  const void* data = nullptr;
  int64_t rows = 0;
  int32_t dim = 0;
  RowType row_type = RowType::kFloat32;
  int64_t row_bytes = 0;          // from one row to the next
  const float* scales = nullptr;  // [rows], kInt8 only
  // Byte offsets within a fused row; the bias follows the scale.
  int32_t codes_at = 0;
  int32_t scale_at = 0;
  bool half_scale = false;         // fp16 scale and bias, else fp32
  RowCacheState* cache = nullptr;  // of a DeviceTable: copies of some rows in device memory
};

// Bytes of a row of `dim` values without padding.
int64_t packed_row_bytes(RowType type, int32_t dim, FusedLayout layout = FusedLayout::kTbe);

// Rows of any type that is not fused, without padding between them; `scales` for kInt8 only.
EmbeddingTable plain_table(std::string name, const void* data, int64_t rows, int32_t dim,
                           RowType type, const float* scales = nullptr);

// Fused rows, `row_bytes` from one to the next. Throws InputError when these are too few.
EmbeddingTable fused_table(std::string name, const void* data, int64_t rows, int32_t dim,
                           RowType type, FusedLayout layout, int64_t row_bytes);

}  // namespace recengine
