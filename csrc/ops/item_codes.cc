#include "ops/item_codes.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>

#include "cpu/isa.h"
#include "cpu/thread_pool.h"
#include "ops/code_scan_kernel.h"
#include "ops/item_rows.h"
#include "recengine/context.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr int64_t kBlocksPerTask = 16;

// The length of the longest item, rounded up, from squares in fp64.
float longest(const double* squares) {
  constexpr double kRoundUp = 1 + 1e-6;  // more than the conversion to fp32 may take off
  return static_cast<float>(std::sqrt(*std::max_element(squares, squares + kBlockItems)) *
                            kRoundUp);
}

// The lower nibbles of both, or the upper ones.
uint8_t low_nibbles(uint8_t upper, uint8_t lower) {
  return static_cast<uint8_t>(upper << 4 | (lower & 0x0f));
}
uint8_t high_nibbles(uint8_t upper, uint8_t lower) {
  return static_cast<uint8_t>((upper & 0xf0) | lower >> 4);
}

// Parts codes [steps, kBlockItems, kStepDims].
void split_codes(const uint8_t* codes, int64_t steps, uint8_t* high, uint8_t* low) {
  constexpr int64_t kPairBytes = 2 * kLineBytes;
  const auto pair_groups = [](const uint8_t* step, auto nibbles, uint8_t* out) {
    for (int64_t pair = 0; pair < kStepBytes; pair += kPairBytes) {
      for (int64_t i = 0; i < kLineBytes; ++i) {
        *out++ = nibbles(step[pair + i], step[pair + kLineBytes + i]);
      }
    }
  };
  for (int64_t step = 0; step < steps; ++step) {
    pair_groups(codes + step * kStepBytes, high_nibbles, high + step * kStepBytes / 2);
  }
  for (int64_t group = 0; group < kBlockGroups; ++group) {
    for (int64_t step = 0; step + 1 < steps; step += 2) {
      const uint8_t* const first = codes + step * kStepBytes + group * kLineBytes;
      for (int64_t i = 0; i < kLineBytes; ++i)
        *low++ = low_nibbles(first[kStepBytes + i], first[i]);
    }
  }
  if (steps % 2 == 1) pair_groups(codes + (steps - 1) * kStepBytes, low_nibbles, low);
}

}  // namespace

const CodeView& ItemCodes::view(int64_t queries, double product_cost) const {
  const PartialScan* best = rotation_ == nullptr ? nullptr : rotation_->best(queries, product_cost);
  return *std::find_if(views_.begin(), views_.end(),
                       [best](const CodeView& view) { return view.partial == best; });
}

// The rests' step comes first where there is one.
ItemCodes::ItemCodes(const ItemVectors& vectors, std::shared_ptr<const Rotation> rotation,
                     bool split)
    : blocks_((vectors.rows() + kBlockItems - 1) / kBlockItems),
      rotation_(std::move(rotation)),
      split_(split) {
  const int64_t rest_steps = rotation_ == nullptr || rotation_->scans().empty() ? 0 : 1;
  steps_ = rest_steps + (vectors.dim() + kStepDims - 1) / kStepDims;
  CodeView all;
  all.first_step = rest_steps;
  all.steps = steps_ - rest_steps;
  views_.push_back(all);
  if (rotation_ != nullptr) {
    for (const PartialScan& scan : rotation_->scans()) {
      CodeView view;
      view.partial = &scan;
      view.rest_slot = static_cast<int64_t>(views_.size()) - 1;
      view.steps = rest_steps + scan.dims / kStepDims;
      views_.push_back(view);
    }
  }
  const auto blocks = static_cast<size_t>(blocks_);
  for (CodeView& view : views_) view.errors.resize(blocks);
  scales_.resize(blocks);
  inverse_scales_.resize(blocks);
  norms_.resize(blocks);
  if (split_) coarse_errors_.resize(blocks);
}

void ItemCodes::copy_block(int64_t at, uint8_t* codes) const {
  if (!split_) {
    std::copy_n(block(at), 2 * half_bytes(), codes);
    return;
  }
  const CodeHalves halves = {high(at), low(at), steps_, 0, (steps_ + 1) / 2, nullptr, nullptr};
  code_scan_for(default_isa(), 1).unpack(halves, codes);
}

std::shared_ptr<const ItemCodes> ItemCodes::pack(const ItemVectors& vectors,
                                                 std::shared_ptr<const Rotation> rotation,
                                                 bool split, const Context& context) {
  const std::shared_ptr<ItemCodes> codes(new ItemCodes(vectors, std::move(rotation), split));
  codes->owned_ = allocate_huge<uint8_t>(2 * codes->blocks_ * codes->half_bytes());
  codes->codes_ = codes->owned_.get();
  std::atomic<bool> codable{true};
  const auto pack_blocks = [&](int64_t task) {
    const int64_t end = std::min((task + 1) * kBlocksPerTask, codes->blocks_);
    for (int64_t block = task * kBlocksPerTask; block < end; ++block) {
      BlockBounds bounds{1, 0};
      uint8_t* const memory = codes->owned_.get();
      const int64_t half = codes->half_bytes();
      if (codes->split_) {
        static thread_local std::vector<uint8_t> whole;
        whole.resize(static_cast<size_t>(2 * half));
        if (!codes->pack_block(context.isa, vectors, block, whole.data(), bounds)) codable = false;
        split_codes(whole.data(), codes->steps_, memory + block * half,
                    memory + (codes->blocks_ + block) * half);
      } else if (!codes->pack_block(context.isa, vectors, block, memory + 2 * block * half,
                                    bounds)) {
        codable = false;
      }
      codes->set_bounds(block, bounds);
    }
  };
  const int64_t tasks = (codes->blocks_ + kBlocksPerTask - 1) / kBlocksPerTask;
  for_each(context.pool, tasks, pack_blocks);
  if (!codable) return nullptr;
  codes->find_largest();
  return codes;
}

void ItemCodes::set_bounds(int64_t block, const BlockBounds& bounds) {
  const auto place = static_cast<size_t>(block);
  scales_[place] = bounds.scale;
  inverse_scales_[place] = 1 / bounds.scale;
  norms_[place] = bounds.largest_norm;
  for (size_t v = 0; v < views_.size(); ++v) views_[v].errors[place] = bounds.errors[v];
  if (split_) coarse_errors_[place] = bounds.coarse_error;
}

ItemCodes::BlockBounds ItemCodes::bounds_of(int64_t block) const {
  const auto place = static_cast<size_t>(block);
  BlockBounds bounds{scales_[place], norms_[place]};
  for (size_t v = 0; v < views_.size(); ++v) bounds.errors[v] = views_[v].errors[place];
  if (split_) bounds.coarse_error = coarse_errors_[place];
  return bounds;
}

void ItemCodes::find_largest() {
  for (const float norm : norms_) largest_norm_ = std::max(largest_norm_, norm);
  for (CodeView& view : views_) {
    for (const float error : view.errors) view.largest_error = std::max(view.largest_error, error);
  }
  if (!split_ || blocks_ == 0) return;
  double sum = 0;
  for (const float error : coarse_errors_) {
    sum += double{error};
    largest_coarse_error_ = std::max(largest_coarse_error_, error);
  }
  mean_coarse_error_ = static_cast<float>(sum / static_cast<double>(blocks_));
}

// What lies behind the last row and the last dimension is coded as zero.
bool ItemCodes::pack_block(Isa isa, const ItemVectors& vectors, int64_t block, uint8_t* codes,
                           BlockBounds& bounds) const {
  const PackKernel& kernel =
      *pick_kernel(isa, &kPackPortable, &kPackAvx2, &kPackAvx512, &kPackAvx512, &kPackAvx512);
  int64_t view_dims[1 + kMostScans];
  const BlockValues values = coded_values(isa, vectors, block, view_dims);
  const float largest = kernel.largest(values);
  if (!std::isfinite(largest)) {
    throw InputError("[item_index] unit_vectors: expected finite values");
  }
  if (largest > 0 && (largest < kSmallestValue || largest > kLargestValue)) return false;
  bounds.scale = largest > 0 ? largest / kLargestCode : 1.0f;
  BlockSquares squares;
  kernel.pack(values, bounds.scale, codes, squares);
  for (size_t v = 0; v < views_.size(); ++v) {
    bounds.errors[v] = longest(squares.left[v]);
  }
  if (split_) bounds.coarse_error = longest(squares.coarse);
  bounds.largest_norm = longest(squares.norms);
  return true;
}

// The values of a block, where they are stored or in memory of this thread.
BlockValues ItemCodes::coded_values(Isa isa, const ItemVectors& vectors, int64_t block,
                                    int64_t* view_dims) const {
  const int64_t first = block * kBlockItems;
  const int64_t count = std::min(vectors.rows() - first, kBlockItems);
  const int64_t dim = vectors.dim();
  const Matrix<const float> rows = load_rows(vectors, first, count, isa);
  const int64_t width = steps_ * kStepDims;
  const int64_t rests = views_.front().first_step * kStepDims;
  const auto views = static_cast<int64_t>(views_.size());
  view_dims[0] = width - rests;
  for (int64_t v = 1; v < views; ++v) {
    view_dims[v] = views_[static_cast<size_t>(v)].partial->dims;
  }
  BlockValues found = {rows.data, width, rests, dim, views, view_dims};
  if (rotation_ == nullptr && count == kBlockItems && width == dim) return found;
  static thread_local std::vector<float> values;
  values.assign(static_cast<size_t>(kBlockItems * width), 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    float* const item = values.data() + i * width;
    if (rotation_ == nullptr) {
      std::copy_n(rows.row(i), dim, item);
      continue;
    }
    rotation_->apply(rows.row(i), item + rests);
    for (int64_t v = 1; v < views; ++v) {
      item[v - 1] = length_of(item + rests + view_dims[v], item + rests + dim);
    }
  }
  found.values = values.data();
  return found;
}

}  // namespace recengine
