#include "ops/item_codes.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <new>

#include "cpu/thread_pool.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr int64_t kBlocksPerTask = 256;
constexpr float kLargestCode = 127;
constexpr float kSmallestValue = 1e-15f;  // of a block's largest: far from what fp32 loses
constexpr float kLargestValue = 1e15f;
constexpr double kRoundUp = 1 + 1e-6;  // more than the conversion to fp32 may take off

uint8_t* allocate(size_t bytes) {
  const size_t whole = (std::max(bytes, size_t{1}) + kHugePage - 1) / kHugePage * kHugePage;
  void* memory = std::aligned_alloc(kHugePage, whole);
  if (memory == nullptr) throw std::bad_alloc();
  madvise(memory, whole, MADV_HUGEPAGE);  // a wish: small pages serve too
  return static_cast<uint8_t*>(memory);
}

}  // namespace

void ItemCodes::Free::operator()(uint8_t* memory) const { std::free(memory); }

std::shared_ptr<const ItemCodes> ItemCodes::pack(Matrix<const float> vectors, ThreadPool* pool) {
  auto codes = std::make_shared<ItemCodes>();
  codes->blocks_ = (vectors.rows + kBlockItems - 1) / kBlockItems;
  codes->steps_ = (vectors.cols + kStepDims - 1) / kStepDims;
  const auto blocks = static_cast<size_t>(codes->blocks_);
  const int64_t bytes = codes->blocks_ * kBlockItems * codes->steps_ * kStepDims;
  codes->codes_.reset(allocate(static_cast<size_t>(bytes)));
  codes->scales_.resize(blocks);
  codes->inverse_scales_.resize(blocks);
  codes->errors_.resize(blocks);
  std::vector<float> norms(blocks);
  std::atomic<bool> codable{true};
  const auto pack_blocks = [&](int64_t task) {
    const int64_t end = std::min((task + 1) * kBlocksPerTask, codes->blocks_);
    for (int64_t block = task * kBlocksPerTask; block < end; ++block) {
      if (!codes->pack_block(vectors, block, norms[static_cast<size_t>(block)])) codable = false;
    }
  };
  const int64_t tasks = (codes->blocks_ + kBlocksPerTask - 1) / kBlocksPerTask;
  for_each(pool, tasks, pack_blocks);
  if (!codable) return nullptr;
  for (size_t block = 0; block < blocks; ++block) {
    codes->largest_error_ = std::max(codes->largest_error_, codes->errors_[block]);
    codes->largest_norm_ = std::max(codes->largest_norm_, norms[block]);
  }
  return codes;
}

// What lies behind the last row and the last dimension is coded as zero.
bool ItemCodes::pack_block(Matrix<const float> vectors, int64_t block, float& largest_norm) {
  const int64_t first = block * kBlockItems;
  const int64_t count = std::min(vectors.rows - first, kBlockItems);
  const int64_t dim = vectors.cols;
  float largest = 0;
  bool finite = true;
  for (int64_t i = 0; i < count * dim; ++i) {
    const float value = std::fabs(vectors.row(first)[i]);
    finite = finite && std::isfinite(value);
    largest = std::max(largest, value);
  }
  if (!finite) throw InputError("[item_index] unit_vectors: expected finite values");
  if (largest > 0 && (largest < kSmallestValue || largest > kLargestValue)) return false;
  const float scale = largest > 0 ? largest / kLargestCode : 1.0f;
  const float inverse = 1 / scale;
  uint8_t* const codes = codes_.get() + block * steps_ * kStepDims * kBlockItems;
  double longest = 0;
  double longest_left = 0;
  for (int64_t i = 0; i < kBlockItems; ++i) {
    double squares = 0;
    double left_squares = 0;
    for (int64_t d = 0; d < steps_ * kStepDims; ++d) {
      const float value = i < count && d < dim ? vectors.row(first + i)[d] : 0.0f;
      const float code = std::clamp(std::nearbyint(value * inverse), -kLargestCode, kLargestCode);
      const double left = double{value} - double{scale} * double{code};
      squares += double{value} * double{value};
      left_squares += left * left;
      codes[d / kStepDims * kStepDims * kBlockItems + i * kStepDims + d % kStepDims] =
          static_cast<uint8_t>(static_cast<int32_t>(code) + kCodeOffset);
    }
    longest = std::max(longest, squares);
    longest_left = std::max(longest_left, left_squares);
  }
  const auto place = static_cast<size_t>(block);
  scales_[place] = scale;
  inverse_scales_[place] = inverse;
  errors_[place] = static_cast<float>(std::sqrt(longest_left) * kRoundUp);
  largest_norm = static_cast<float>(std::sqrt(longest) * kRoundUp);
  return true;
}

}  // namespace recengine
