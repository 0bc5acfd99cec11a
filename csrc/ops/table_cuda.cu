#include <cstdint>
#include <utility>

#include "cuda/launch.h"
#include "recengine/cuda.h"
#include "recengine/device_table.h"

namespace recengine {
namespace {

constexpr int64_t kLoadBytes = 16;

int64_t padded_row_bytes(int64_t bytes) {
  const int64_t padded = (bytes + kLoadBytes - 1) / kLoadBytes * kLoadBytes;
  return 3 * (padded - bytes) <= bytes ? padded : bytes;
}

std::shared_ptr<void> copy_scales(const EmbeddingTable& table, int device) {
  const int64_t bytes = table.rows * static_cast<int64_t>(sizeof(float));
  std::shared_ptr<void> scales = allocate_on_device(bytes, device, nullptr);
  if (bytes > 0) copy_to_device(scales.get(), table.scales, bytes, device, nullptr);
  return scales;
}

}  // namespace

DeviceTable DeviceTable::copy(const EmbeddingTable& table, int device) {
  const cuda::DeviceGuard guard(device);
  DeviceTable copy;
  copy.view_ = table;
  copy.device_ = device;
  copy.view_.row_bytes = padded_row_bytes(table.row_bytes);
  const int64_t bytes = copy.view_.row_bytes * table.rows;
  copy.data_ = allocate_on_device(bytes, device, nullptr);
  if (bytes > 0) {
    RECENGINE_CUDA_CHECK(cudaMemsetAsync(copy.data_.get(), 0, static_cast<size_t>(bytes), nullptr));
    RECENGINE_CUDA_CHECK(cudaMemcpy2DAsync(
        copy.data_.get(), static_cast<size_t>(copy.view_.row_bytes), table.data,
        static_cast<size_t>(table.row_bytes), static_cast<size_t>(table.row_bytes),
        static_cast<size_t>(table.rows), cudaMemcpyHostToDevice, nullptr));
    RECENGINE_CUDA_CHECK(cudaStreamSynchronize(nullptr));
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
  borrowed.view_ = std::move(table);
  return borrowed;
}

}  // namespace recengine
