#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "ops/row_cache.h"
#include "recengine/cuda.h"
#include "recengine/device_table.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr int64_t kLoadBytes = 16;
constexpr int64_t kBlockBytes = int64_t{64} << 20;
constexpr int64_t kMaxCapacity = INT32_MAX;  // of a cache; its map has twice as many entries

int64_t padded_row_bytes(int64_t bytes) {
  const int64_t padded = (bytes + kLoadBytes - 1) / kLoadBytes * kLoadBytes;
  return 3 * (padded - bytes) <= bytes ? padded : bytes;
}

std::shared_ptr<void> copy_scales(const EmbeddingTable& table, int device) {
  if (table.scales == nullptr) return nullptr;
  return copy_resident(table.scales, table.rows, device);
}

int64_t scale_bytes(const EmbeddingTable& table) {
  return table.scales == nullptr ? 0 : table.rows * int64_t{sizeof(float)};
}

// Rows [begin, begin + count) of the table, `row_bytes` from one to the next.
void lay_out(const EmbeddingTable& table, int64_t begin, int64_t count, int64_t row_bytes,
             char* to) {
  if (count > 0 && row_bytes == table.row_bytes) {
    std::memcpy(to, static_cast<const char*>(table.data) + begin * row_bytes,
                static_cast<size_t>(count * row_bytes));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(to + i * row_bytes,
                static_cast<const char*>(table.data) + (begin + i) * table.row_bytes,
                static_cast<size_t>(table.row_bytes));
  }
}

// Copies rows that get padding: a block of them at a time is laid out on the host.
std::shared_ptr<void> copy_padded(const EmbeddingTable& table, int64_t row_bytes, int device) {
  std::shared_ptr<void> copy = allocate_resident(row_bytes * table.rows, device);
  const int64_t block = std::max<int64_t>(std::min(kBlockBytes / row_bytes, table.rows), 1);
  std::vector<char> padded(static_cast<size_t>(block * row_bytes));
  for (int64_t begin = 0; begin < table.rows; begin += block) {
    const int64_t count = std::min(block, table.rows - begin);
    lay_out(table, begin, count, row_bytes, padded.data());
    copy_to_device(static_cast<char*>(copy.get()) + begin * row_bytes, padded.data(),
                   count * row_bytes, device, thread_stream(device));
  }
  return copy;
}

void check_spill(const EmbeddingTable& table, int64_t cache_bytes) {
  if (cache_bytes < 0) {
    throw InputError("[device_table] \"" + table.name +
                     "\": cache_bytes: expected at least 0, found " + std::to_string(cache_bytes));
  }
  if (table.rows > int64_t{UINT32_MAX}) {
    throw InputError("[device_table] \"" + table.name +
                     "\": expected fewer than 2^32 rows with rows on the host, found " +
                     std::to_string(table.rows));
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
  const int64_t row_bytes = copy.view_.row_bytes;
  copy.data_ = row_bytes == table.row_bytes ? copy_resident(static_cast<const char*>(table.data),
                                                            table.rows * row_bytes, device)
                                            : copy_padded(table, row_bytes, device);
  copy.view_.data = copy.data_.get();
  copy.scales_ = copy_scales(table, device);
  copy.view_.scales = static_cast<const float*>(copy.scales_.get());
  copy.held_ = table.rows;
  copy.device_bytes_ = bytes_of_copy(table);
  return copy;
}

int64_t DeviceTable::bytes_of_copy(const EmbeddingTable& table) {
  return table.rows * padded_row_bytes(table.row_bytes) + scale_bytes(table);
}

DeviceTable DeviceTable::spill(const EmbeddingTable& table, int device, int64_t cache_bytes) {
  check_spill(table, cache_bytes);
  DeviceTable spilled;
  spilled.view_ = table;
  spilled.device_ = device;
  spilled.view_.row_bytes = padded_row_bytes(table.row_bytes);
  spilled.data_ = allocate_mapped(spilled.view_.row_bytes * table.rows, device);
  spilled.view_.data = spilled.data_.get();
  lay_out(table, 0, table.rows, spilled.view_.row_bytes, static_cast<char*>(spilled.data_.get()));
  spilled.scales_ = copy_scales(table, device);
  spilled.view_.scales = static_cast<const float*>(spilled.scales_.get());
  const int64_t fitting = cache_bytes / RowCache::slot_bytes(spilled.view_.row_bytes);
  const auto capacity = static_cast<uint32_t>(std::min({fitting, table.rows, kMaxCapacity}));
  spilled.device_bytes_ = scale_bytes(table);
  if (capacity > 0) {
    spilled.cache_ = std::make_shared<RowCache>(spilled.view_, capacity, device);
    spilled.view_.cache = spilled.cache_->state();
    spilled.device_bytes_ += RowCache::device_bytes(capacity, spilled.view_.row_bytes);
  }
  return spilled;
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
  borrowed.held_ = borrowed.view_.rows;
  return borrowed;
}

int64_t DeviceTable::refresh() const { return cache_ == nullptr ? 0 : cache_->refresh(); }

int64_t DeviceTable::warm(Span<const int64_t> rows) const {
  for (int64_t i = 0; i < rows.size; ++i) {
    if (rows[i] >= 0 && rows[i] < view_.rows) continue;
    throw InputError("[device_table] \"" + view_.name + "\": rows[" + std::to_string(i) +
                     "]: expected 0 to " + std::to_string(view_.rows - 1) + ", found " +
                     std::to_string(rows[i]));
  }
  if (cache_ == nullptr) return 0;
  const std::vector<uint32_t> given(rows.begin(), rows.end());
  return cache_->warm(given);
}

CacheStats DeviceTable::stats() const {
  if (cache_ != nullptr) return cache_->stats();
  CacheStats stats;
  stats.held = held_;
  return stats;
}

}  // namespace recengine
