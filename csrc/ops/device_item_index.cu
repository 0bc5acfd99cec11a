#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

#include "cpu/thread_pool.h"
#include "cuda/launch.h"
#include "cuda/wgmma.h"
#include "ops/device_items.h"
#include "ops/item_codes.h"
#include "ops/item_rows.h"
#include "recengine/cuda.h"
#include "recengine/device_item_index.h"

namespace recengine {
namespace cuda {
namespace {

constexpr int64_t kBlocksAtOnce = 1 << 14;  // packed on the host, then copied
constexpr int64_t kRowsAtOnce = 1 << 16;    // converted, then copied

static_assert(kBlockItems % kMmaRows == 0 && kMmaBytes % kStepDims == 0 && kCodeOffset == 128);

// Four codes of an item as signed bytes; those behind the last dimension are zeros.
uint32_t signed_codes(const uint8_t* block, int64_t steps, int64_t step, int64_t item) {
  uint32_t codes = 0;
  if (step >= steps) return codes;
  std::memcpy(&codes, block + (step * kBlockItems + item) * kStepDims, sizeof codes);
  return codes ^ 0x80808080u;
}

// The codes of a block as mma_s8() takes them: uint4 [steps, tiles, lanes].
void pack_block(const ItemCodes& codes, int64_t block, int64_t mma_steps, uint4* out) {
  const CodeView& view = codes.full_view();
  std::vector<uint8_t> unpacked(static_cast<size_t>(codes.steps() * kStepBytes));
  codes.copy_block(block, unpacked.data());
  const uint8_t* const from = unpacked.data() + view.first_step * kStepBytes;
  constexpr int64_t kHalf = kMmaBytes / 2 / kStepDims;  // from one half of a tile to the next
  for (int64_t step = 0; step < mma_steps; ++step) {
    for (int64_t load = 0; load < kStepLoads; ++load) {
      const int64_t lane = load % kTileLoads;
      const int64_t item = load / kTileLoads * kMmaRows + lane / 4;
      const int64_t first = step * (kMmaBytes / kStepDims) + lane % 4;
      *out++ = {signed_codes(from, view.steps, first, item),
                signed_codes(from, view.steps, first, item + kMmaRows / 2),
                signed_codes(from, view.steps, first + kHalf, item),
                signed_codes(from, view.steps, first + kHalf, item + kMmaRows / 2)};
    }
  }
}

// In fp32, whatever they are stored in.
std::shared_ptr<void> copy_units(const ItemVectors& vectors, int device) {
  const int64_t row_bytes = vectors.dim() * int64_t{sizeof(float)};
  std::shared_ptr<void> copy = allocate_resident(vectors.rows() * row_bytes, device);
  for (int64_t first = 0; first < vectors.rows(); first += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, vectors.rows() - first);
    copy_to_device(static_cast<char*>(copy.get()) + first * row_bytes,
                   load_rows(vectors, first, count, default_isa()).data, count * row_bytes, device,
                   thread_stream(device));
  }
  return copy;
}

std::shared_ptr<void> copy_codes(const ItemCodes& codes, int64_t steps, int device,
                                 ThreadPool* pool) {
  const int64_t of_block = steps * kStepLoads;
  const int64_t block_bytes = of_block * int64_t{sizeof(uint4)};
  std::shared_ptr<void> copy = allocate_resident(codes.blocks() * block_bytes, device);
  std::vector<uint4> packed;
  for (int64_t first = 0; first < codes.blocks(); first += kBlocksAtOnce) {
    const int64_t count = std::min(kBlocksAtOnce, codes.blocks() - first);
    packed.resize(static_cast<size_t>(count * of_block));
    for_each(pool, count,
             [&](int64_t i) { pack_block(codes, first + i, steps, packed.data() + i * of_block); });
    copy_to_device(static_cast<char*>(copy.get()) + first * block_bytes, packed.data(),
                   count * block_bytes, device, thread_stream(device));
  }
  return copy;
}

std::shared_ptr<void> copy_bounds(const ItemCodes& codes, int device) {
  std::vector<BlockBound> bounds(static_cast<size_t>(codes.blocks()));
  for (size_t block = 0; block < bounds.size(); ++block) {
    bounds[block] = {codes.inverse_scales()[block], codes.full_view().errors[block]};
  }
  return copy_resident(bounds.data(), codes.blocks(), device);
}

void copy_coded(const ItemCodes& codes, int device, ThreadPool* pool, DeviceItems& items) {
  ItemsView& view = items.view;
  view.blocks = codes.blocks();
  view.steps = (view.dim + kMmaBytes - 1) / kMmaBytes;
  view.largest_norm = codes.largest_norm();
  view.largest_error = codes.full_view().largest_error;
  items.codes = copy_codes(codes, view.steps, device, pool);
  view.codes = static_cast<const uint4*>(items.codes.get());
  items.bounds = copy_bounds(codes, device);
  view.bounds = static_cast<const BlockBound*>(items.bounds.get());
  if (codes.rotation() == nullptr) return;
  items.axes = copy_resident(codes.rotation()->axes(), int64_t{view.dim} * view.dim, device);
  view.axes = static_cast<const float*>(items.axes.get());
  view.turned = codes.rotation()->error();
}

std::shared_ptr<const DeviceItems> copy_items(const ItemIndex& index, int device,
                                              ThreadPool* pool) {
  auto items = std::make_shared<DeviceItems>();
  RECENGINE_CUDA_CHECK(
      cudaDeviceGetAttribute(&items->multiprocessors, cudaDevAttrMultiProcessorCount, device));
  items->has_wgmma = device_has_wgmma(device);
  items->view.rows = index.rows();
  items->view.dim = static_cast<int32_t>(index.dim());
  items->units = copy_units(index.unit_vectors(), device);
  items->view.units = static_cast<const float*>(items->units.get());
  const bool coded = index.codes() != nullptr && index.dim() <= kMostMmaDims;
  if (coded) copy_coded(*index.codes(), device, pool, *items);
  return items;
}

}  // namespace
}  // namespace cuda

DeviceItemIndex DeviceItemIndex::copy(const ItemIndex& index, int device, ThreadPool* pool) {
  DeviceItemIndex copy;
  copy.rows_ = index.rows();
  copy.dim_ = index.dim();
  copy.device_ = device;
  copy.items_ = cuda::copy_items(index, device, pool);
  return copy;
}

}  // namespace recengine
