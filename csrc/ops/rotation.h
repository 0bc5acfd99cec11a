#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "recengine/item_index.h"
#include "recengine/tensor.h"

namespace recengine {

class ThreadPool;

constexpr int64_t kBlockItems = 64;        // share a scale and an error, and are scored together
constexpr int64_t kStepDims = 4;           // multiplied by one instruction
constexpr int64_t kMostRotatedDims = 512;  // to find the axes takes some 50 dim^3 operations
constexpr int kMostScans = 4;              // the lengths of their rests share a step
static_assert(kMostScans <= kStepDims);

// The length of a vector, rounded up.
float length_of(const float* begin, const float* end);

// A scan of the first dimensions of rotated vectors; what is left of an item, its rest, is bounded
// by its length: <q, x> <= <q, x over dims> + |rest of q| |rest of x|.
struct PartialScan {
  int64_t dims = 0;
  double passing = 0;  // share of items whose bound reaches the K-th best score, measured
};

// Turns a catalog's vectors so that 8-bit codes of them tell more. Vectors of trained models are
// long along some principal axes and short along most: with the long ones first, a scan of the
// first dimensions rules almost all items out. Within each part that a scan reads the axes are
// mixed, so that no dimension is much wider than the others, with which it shares a scale.
class Rotation {
 public:
  // Measures on a sample of the unit `vectors` whether partial scans or mixing pay; null when
  // neither does.
  static std::shared_ptr<const Rotation> find(const ItemVectors& vectors, ThreadPool* pool);

  // The one with these axes [dim, dim], one a column, and scans.
  static std::shared_ptr<const Rotation> of(Matrix<const float> axes,
                                            std::vector<PartialScan> scans);

  // out [dim] = the coordinates of in [dim] along the axes.
  void apply(const float* in, float* out) const;

  int64_t dim() const { return dim_; }
  const float* axes() const { return axes_.data(); }  // [dim, dim], one a column

  // The scan that costs least for so many queries; null: one of all dimensions. `product_cost` is
  // that of the kernel that scans.
  const PartialScan* best(int64_t queries, double product_cost) const;

  // Whether a scan costs less than one of all dimensions when that share of items passes a guessed
  // bound in it.
  bool pays(const PartialScan& scan, double passing, int64_t queries, double product_cost) const;

  // At most kMostScans, of different dims; none where only mixing pays.
  const std::vector<PartialScan>& scans() const { return scans_; }

  // How far a product of two rotated unit vectors may be from that of the vectors.
  double error() const { return error_; }

 private:
  void choose_scans(Matrix<const float> items, int64_t rows, ThreadPool* pool);
  void find_error();

  int64_t dim_ = 0;
  std::vector<float> axes_;
  std::vector<PartialScan> scans_;
  double error_ = 0;
};

}  // namespace recengine
