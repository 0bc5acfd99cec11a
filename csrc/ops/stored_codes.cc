// Codes of items on their way to a file and back.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "ops/item_codes.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr int64_t kComparedBlocks = 64;  // packed again when codes are loaded

[[noreturn]] void fail(const std::string& what) { throw InputError("[item_index] codes: " + what); }

void expect_size(const char* what, int64_t found, int64_t expected) {
  if (found == expected) return;
  fail(std::string(what) + ": expected " + std::to_string(expected) + " values, found " +
       std::to_string(found));
}

std::vector<PartialScan> read_scans(const std::vector<float>& values, int64_t dim) {
  std::vector<PartialScan> scans;
  if (values.size() % 2 != 0 || values.size() > 2 * kMostScans) {
    fail("scans: expected at most " + std::to_string(2 * kMostScans) + " values in pairs, found " +
         std::to_string(values.size()));
  }
  for (size_t i = 0; i < values.size(); i += 2) {
    const float dims = values[i];
    const float passing = values[i + 1];
    const bool whole_steps = dims > 0 && dims < static_cast<float>(dim) &&
                             std::fmod(dims, static_cast<float>(kStepDims)) == 0;
    if (!whole_steps) {
      fail("scans: expected a multiple of " + std::to_string(kStepDims) + " dimensions below " +
           std::to_string(dim) + ", found " + std::to_string(dims));
    }
    if (!(passing >= 0 && passing <= 1)) {
      fail("scans: expected a share from 0 to 1, found " + std::to_string(passing));
    }
    scans.push_back({static_cast<int64_t>(dims), double{passing}});
  }
  return scans;
}

std::shared_ptr<const Rotation> read_rotation(const StoredCodes& stored, int64_t dim) {
  std::vector<PartialScan> scans = read_scans(stored.scans, dim);
  if (stored.axes.empty()) {
    if (!scans.empty()) fail("scans: expected none without axes");
    return nullptr;
  }
  if (dim > kMostRotatedDims) {
    fail("axes: expected none of more than " + std::to_string(kMostRotatedDims) +
         " dimensions, found " + std::to_string(dim));
  }
  expect_size("axes", static_cast<int64_t>(stored.axes.size()), dim * dim);
  const auto finite = [](float value) { return std::isfinite(value); };
  if (!std::all_of(stored.axes.begin(), stored.axes.end(), finite)) {
    fail("axes: expected finite values, found NaN or infinity");
  }
  return Rotation::of({stored.axes.data(), dim, dim}, std::move(scans));
}

}  // namespace

StoredCodes ItemCodes::store() const {
  StoredCodes stored;
  stored.codes = {codes_, 2 * blocks_ * half_bytes()};
  stored.bounds.insert(stored.bounds.end(), scales_.begin(), scales_.end());
  stored.bounds.insert(stored.bounds.end(), norms_.begin(), norms_.end());
  for (const CodeView& view : views_) {
    stored.bounds.insert(stored.bounds.end(), view.errors.begin(), view.errors.end());
  }
  stored.bounds.insert(stored.bounds.end(), coarse_errors_.begin(), coarse_errors_.end());
  if (rotation_ == nullptr) return stored;
  stored.axes.assign(rotation_->axes(), rotation_->axes() + rotation_->dim() * rotation_->dim());
  for (const PartialScan& scan : rotation_->scans()) {
    stored.scans.push_back(static_cast<float>(scan.dims));
    stored.scans.push_back(static_cast<float>(scan.passing));
  }
  return stored;
}

std::shared_ptr<const ItemCodes> ItemCodes::load(const ItemVectors& vectors,
                                                 const StoredCodes& stored) {
  if (vectors.dim() > kMostCodedDims) {
    fail("expected vectors of at most " + std::to_string(kMostCodedDims) + " dimensions, found " +
         std::to_string(vectors.dim()));
  }
  std::shared_ptr<const Rotation> rotation = read_rotation(stored, vectors.dim());
  const auto scans = static_cast<int64_t>(stored.scans.size()) / 2;
  const int64_t blocks = (vectors.rows() + kBlockItems - 1) / kBlockItems;
  const bool split = static_cast<int64_t>(stored.bounds.size()) == (4 + scans) * blocks;
  const std::shared_ptr<ItemCodes> codes(new ItemCodes(vectors, std::move(rotation), split));
  const auto views = static_cast<int64_t>(codes->views_.size());
  const int64_t rows = 2 + views + (split ? 1 : 0);
  expect_size("codes", stored.codes.size, 2 * codes->blocks_ * codes->half_bytes());
  expect_size("bounds", static_cast<int64_t>(stored.bounds.size()), rows * codes->blocks_);
  codes->codes_ = stored.codes.data;
  for (int64_t block = 0; block < codes->blocks_; ++block) {
    const float* const values = stored.bounds.data() + block;
    BlockBounds bounds{values[0], values[codes->blocks_]};
    for (int64_t v = 0; v < views; ++v) bounds.errors[v] = values[(2 + v) * codes->blocks_];
    if (split) bounds.coarse_error = values[(2 + views) * codes->blocks_];
    codes->set_bounds(block, bounds);
  }
  codes->require_bounds();
  codes->require_blocks(vectors);
  codes->find_largest();
  return codes;
}

// Nothing that pack_block() does not write: from other values fp32 could make bounds that are none.
void ItemCodes::require_bounds() const {
  constexpr float kSmallestScale = kSmallestValue / (2 * kLargestCode);
  const auto scales = [](float value) { return value >= kSmallestScale && value <= kLargestValue; };
  const float longest = kLargestValue * kMostCodedDims;
  const auto lengths = [longest](float value) { return value >= 0 && value <= longest; };
  for (int64_t block = 0; block < blocks_; ++block) {
    const BlockBounds bounds = bounds_of(block);
    if (scales(bounds.scale) && lengths(bounds.largest_norm) && lengths(bounds.coarse_error) &&
        std::all_of(std::begin(bounds.errors), std::end(bounds.errors), lengths)) {
      continue;
    }
    fail("bounds: block " + std::to_string(block) +
         ": expected a scale from 1e-18 to 1e15, and lengths from 0 to 1e19");
  }
}

// Packing is the same on every machine, so that codes of other vectors, or of a version that packs
// in another way, do not go unnoticed.
void ItemCodes::require_blocks(const ItemVectors& vectors) const {
  const Isa isa = default_isa();
  std::vector<uint8_t> packed(static_cast<size_t>(2 * half_bytes()));
  std::vector<uint8_t> found(packed.size());
  const int64_t compared = std::min(kComparedBlocks, blocks_);
  for (int64_t i = 0; i < compared; ++i) {
    const int64_t block = i * blocks_ / compared;
    const BlockBounds stored = bounds_of(block);
    copy_block(block, found.data());
    BlockBounds bounds{};
    const bool same = pack_block(isa, vectors, block, packed.data(), bounds) && packed == found &&
                      bounds.scale == stored.scale && bounds.largest_norm == stored.largest_norm &&
                      bounds.coarse_error == stored.coarse_error &&
                      std::equal(std::begin(bounds.errors), std::end(bounds.errors), stored.errors);
    if (!same) fail("block " + std::to_string(block) + ": expected codes of these vectors");
  }
}

}  // namespace recengine
