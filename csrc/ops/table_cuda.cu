#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "recengine/cuda.h"
#include "recengine/device_table.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr int64_t kLoadBytes = 16;
constexpr int64_t kBlockBytes = int64_t{64} << 20;

int64_t padded_row_bytes(int64_t bytes) {
  const int64_t padded = (bytes + kLoadBytes - 1) / kLoadBytes * kLoadBytes;
  return 3 * (padded - bytes) <= bytes ? padded : bytes;
}

std::shared_ptr<void> copy_scales(const EmbeddingTable& table, int device) {
  const int64_t bytes = table.rows * static_cast<int64_t>(sizeof(float));
  std::shared_ptr<void> scales = allocate_resident(bytes, device);
  if (bytes > 0) copy_to_device(scales.get(), table.scales, bytes, device, nullptr);
  return scales;
}

// Copies rows that get padding: a block of them at a time is laid out on the host.
void copy_padded(const EmbeddingTable& table, int64_t row_bytes, void* to, int device) {
  const int64_t block = std::clamp<int64_t>(kBlockBytes / row_bytes, 1, table.rows);
  std::vector<char> padded(static_cast<size_t>(block * row_bytes));
  for (int64_t begin = 0; begin < table.rows; begin += block) {
    const int64_t count = std::min(block, table.rows - begin);
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(padded.data() + i * row_bytes,
                  static_cast<const char*>(table.data) + (begin + i) * table.row_bytes,
                  static_cast<size_t>(table.row_bytes));
    }
    copy_to_device(static_cast<char*>(to) + begin * row_bytes, padded.data(), count * row_bytes,
                   device, nullptr);
  }
}

// What the values of a row are aligned to.
uintptr_t value_bytes(RowType type) {
  switch (type) {
    case RowType::kFloat32:
      return 4;
    case RowType::kFloat16:
    case RowType::kBfloat16:
      return 2;
    default:
      return 1;
  }
}

}  // namespace

DeviceTable DeviceTable::copy(const EmbeddingTable& table, int device) {
  DeviceTable copy;
  copy.view_ = table;
  copy.device_ = device;
  copy.view_.row_bytes = padded_row_bytes(table.row_bytes);
  const int64_t bytes = copy.view_.row_bytes * table.rows;
  copy.data_ = allocate_resident(bytes, device);
  if (bytes > 0 && copy.view_.row_bytes == table.row_bytes) {
    copy_to_device(copy.data_.get(), table.data, bytes, device, nullptr);
  } else if (bytes > 0) {
    copy_padded(table, copy.view_.row_bytes, copy.data_.get(), device);
  }
  copy.view_.data = copy.data_.get();
  if (table.scales != nullptr) copy.scales_ = copy_scales(table, device);
  copy.view_.scales = static_cast<const float*>(copy.scales_.get());
  return copy;
}

DeviceTable DeviceTable::borrow(EmbeddingTable table) {
  DeviceTable borrowed;
  borrowed.device_ = device_of(table.data);
  const bool apart = table.scales != nullptr && device_of(table.scales) != borrowed.device_;
  if (borrowed.device_ < 0 || apart) {
    throw InputError("[device_table] \"" + table.name +
                     "\": expected data and scales on one GPU, found them elsewhere");
  }
  if (reinterpret_cast<uintptr_t>(table.data) % value_bytes(table.row_type) != 0) {
    throw InputError("[device_table] \"" + table.name + "\": expected data aligned to its values");
  }
  borrowed.view_ = std::move(table);
  return borrowed;
}

}  // namespace recengine
