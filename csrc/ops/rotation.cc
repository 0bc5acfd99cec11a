#include "ops/rotation.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <utility>

#include "cpu/thread_pool.h"
#include "ops/item_rows.h"
#include "recengine/context.h"

namespace recengine {
namespace {

constexpr int64_t kSampleRows = 1 << 14;
constexpr int64_t kSampleQueries = 32;  // items stand in for queries
constexpr double kWanted = 100;         // K that the costs are measured for
constexpr int64_t kDimsApart = 8;       // of the scans that are tried
constexpr double kWorthwhile = 0.85;    // of the cost of all dimensions
constexpr double kRoundUp = 1 + 1e-6;   // more than the conversion to fp32 may take off
constexpr double kNegligible = 1e-9;    // of an element beside the diagonal

// What a scan costs, in bytes read: measured on two cores each of an AMD EPYC (Zen 5) and an Intel
// Xeon with AMX. What products cost is the kernel's (CodeScanKernel::product_cost).
constexpr double kCompareCost = 1.5;  // of an item's product with a query's threshold
constexpr double kChosenFor = 0.1;    // product cost: an index does not depend on where it is built
constexpr double kScoreCost = 1500;   // finding, fetching and scoring an item
constexpr double kAloneCost = 3000;   // more for a lone query, whose items wait for each other

double axes_bytes(int64_t dim) { return static_cast<double>(dim * dim) * sizeof(float); }

// What axes may take of an item, so that with its code, which fills whole steps, the lengths of its
// rests and its block's bounds it takes at most dim + 8 bytes.
double axes_room(int64_t dim) {
  constexpr double kBlockBounds = 0.5;
  const int64_t padding = (kStepDims - dim % kStepDims) % kStepDims;
  return 8 - kBlockBounds - static_cast<double>(kStepDims + padding);
}

// `dims` codes of every item are read and multiplied.
double scan_cost(int64_t dims, int64_t queries, double product_cost) {
  const auto read = static_cast<double>(dims);
  return std::max(read, (product_cost * read + kCompareCost) * static_cast<double>(queries));
}

double scan_cost(const PartialScan& scan, int64_t queries, double product_cost) {
  return scan_cost(scan.dims + kStepDims, queries, product_cost);
}

double cost_of(const PartialScan& scan, int64_t queries, double product_cost) {
  const auto count = static_cast<double>(queries);
  return scan_cost(scan, queries, product_cost) + (kScoreCost * count + kAloneCost) * scan.passing;
}

// Null when none costs clearly less than a scan of all dimensions.
const PartialScan* cheapest(const std::vector<PartialScan>& scans, int64_t dim, int64_t queries,
                            double product_cost) {
  const PartialScan* best = nullptr;
  double least = kWorthwhile * scan_cost(dim, queries, product_cost);
  for (const PartialScan& scan : scans) {
    const double cost = cost_of(scan, queries, product_cost);
    if (cost < least) {
      best = &scan;
      least = cost;
    }
  }
  return best;
}

// Sums of x x^T over the rows: [dim, dim].
std::vector<double> second_moments(Matrix<const float> rows, ThreadPool* pool) {
  const int64_t dim = rows.cols;
  std::vector<double> moments(static_cast<size_t>(dim * dim));
  for_each(pool, dim, [&](int64_t i) {
    double* const sums = moments.data() + i * dim;
    for (int64_t row = 0; row < rows.rows; ++row) {
      const float* x = rows.row(row);
      for (int64_t j = 0; j < dim; ++j) sums[j] += double{x[i]} * double{x[j]};
    }
  });
  return moments;
}

// Rotates rows and columns p and q of the symmetric matrix so that element (p, q) becomes zero, and
// the axes with them. (Jacobi's method.)
void annihilate(std::vector<double>& matrix, std::vector<double>& axes, int64_t dim, int64_t p,
                int64_t q) {
  double* const a = matrix.data();
  const double apq = a[p * dim + q];
  const double app = a[p * dim + p];
  const double aqq = a[q * dim + q];
  if (std::fabs(apq) <= kNegligible * std::sqrt(app * aqq)) return;
  const double theta = (aqq - app) / (2 * apq);
  const double t = (theta >= 0 ? 1 : -1) / (std::fabs(theta) + std::sqrt(theta * theta + 1));
  const double cosine = 1 / std::sqrt(t * t + 1);
  const double sine = t * cosine;
  const auto turn = [&](double& x, double& y) {
    const double old = x;
    x = cosine * old - sine * y;
    y = sine * old + cosine * y;
  };
  for (int64_t i = 0; i < dim; ++i) turn(a[i * dim + p], a[i * dim + q]);
  for (int64_t i = 0; i < dim; ++i) turn(a[p * dim + i], a[q * dim + i]);
  for (int64_t i = 0; i < dim; ++i)
    turn(axes[static_cast<size_t>(p * dim + i)], axes[static_cast<size_t>(q * dim + i)]);
}

// Unit eigenvectors, one a column, that of the largest eigenvalue first.
std::vector<float> principal_axes(std::vector<double> moments, int64_t dim) {
  constexpr int kSweeps = 12;
  std::vector<double> axes(static_cast<size_t>(dim * dim));
  for (int64_t i = 0; i < dim; ++i) axes[static_cast<size_t>(i * dim + i)] = 1;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    for (int64_t p = 0; p < dim; ++p) {
      for (int64_t q = p + 1; q < dim; ++q) annihilate(moments, axes, dim, p, q);
    }
  }
  std::vector<int64_t> order(static_cast<size_t>(dim));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::sort(order.begin(), order.end(), [&](int64_t i, int64_t j) {
    return moments[static_cast<size_t>(i * dim + i)] > moments[static_cast<size_t>(j * dim + j)];
  });
  std::vector<float> sorted;
  for (int64_t d = 0; d < dim; ++d) {
    for (const int64_t i : order) {
      sorted.push_back(static_cast<float>(axes[static_cast<size_t>(i * dim + d)]));
    }
  }
  return sorted;
}

// A random orthogonal matrix [dim, dim]: Gaussian rows made orthonormal, twice against rounding.
std::vector<double> random_rotation(int64_t dim, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  std::vector<double> rows(static_cast<size_t>(dim * dim));
  for (double& value : rows) value = normal(random);
  for (int64_t i = 0; i < dim; ++i) {
    double* const row = rows.data() + i * dim;
    for (int pass = 0; pass < 2; ++pass) {
      for (const double* other = rows.data(); other != row; other += dim) {
        const double along = std::inner_product(row, row + dim, other, 0.0);
        for (int64_t d = 0; d < dim; ++d) row[d] -= along * other[d];
      }
      const double length = std::sqrt(std::inner_product(row, row + dim, row, 0.0));
      for (int64_t d = 0; d < dim; ++d) row[d] /= length;
    }
  }
  return rows;
}

// Turns the axes [begin, end) within the space that they span, so that values along them are about
// equally large: one scale for all of a block's codes then wastes least.
void mix(std::vector<float>& axes, int64_t dim, int64_t begin, int64_t end,
         std::mt19937_64& random) {
  const int64_t count = end - begin;
  const std::vector<double> turn = random_rotation(count, random);
  std::vector<double> mixed(static_cast<size_t>(count));
  for (int64_t d = 0; d < dim; ++d) {
    float* const old = axes.data() + d * dim + begin;
    for (int64_t i = 0; i < count; ++i) {
      mixed[static_cast<size_t>(i)] =
          std::inner_product(old, old + count, turn.data() + i * count, 0.0);
    }
    for (int64_t i = 0; i < count; ++i) old[i] = static_cast<float>(mixed[static_cast<size_t>(i)]);
  }
}

// The mean over blocks of the largest value, which sets the scale of a block's codes.
double mean_largest(Matrix<const float> rows) {
  double sum = 0;
  int64_t blocks = 0;
  for (int64_t first = 0; first + kBlockItems <= rows.rows; first += kBlockItems, ++blocks) {
    float largest = 0;
    for (int64_t i = 0; i < kBlockItems * rows.cols; ++i) {
      largest = std::max(largest, std::fabs(rows.row(first)[i]));
    }
    sum += double{largest};
  }
  return sum / static_cast<double>(blocks);
}

// How far the axes are from orthonormal: |A^T A - I| in the Frobenius norm, which bounds the change
// of a product of unit vectors.
double defect(const std::vector<float>& axes, int64_t dim) {
  double squares = 0;
  for (int64_t i = 0; i < dim; ++i) {
    for (int64_t j = 0; j < dim; ++j) {
      double product = i == j ? -1 : 0;
      for (int64_t d = 0; d < dim; ++d) {
        product += double{axes[static_cast<size_t>(d * dim + i)]} *
                   double{axes[static_cast<size_t>(d * dim + j)]};
      }
      squares += product * product;
    }
  }
  return std::sqrt(squares);
}

// For each number of dims that is tried, the length of what lies behind them.
std::vector<float> rests_of(const float* rotated, int64_t dim) {
  std::vector<float> rests;
  double squares = 0;
  for (int64_t d = dim - 1; d > 0; --d) {
    squares += double{rotated[d]} * double{rotated[d]};
    if (d % kDimsApart == 0) rests.push_back(static_cast<float>(std::sqrt(squares)));
  }
  std::reverse(rests.begin(), rests.end());
  return rests;
}

// How many items' bounds reach the score that `wanted` items reach, for one item as the query and
// each number of dims.
std::vector<int64_t> count_passing(Matrix<const float> items,
                                   const std::vector<std::vector<float>>& rests, int64_t query,
                                   int64_t wanted) {
  const float* const of_query = items.row(query);
  const std::vector<float>& query_rests = rests[static_cast<size_t>(query)];
  std::vector<std::vector<float>> bounds(query_rests.size());
  std::vector<float> scores;
  for (int64_t i = 0; i < items.rows; ++i) {
    if (i == query) continue;
    float score = 0;
    for (int64_t begin = 0, n = 0; begin < items.cols; begin += kDimsApart, ++n) {
      const int64_t end = std::min(begin + kDimsApart, items.cols);
      score = std::inner_product(of_query + begin, of_query + end, items.row(i) + begin, score);
      if (end == items.cols) break;
      const auto tried = static_cast<size_t>(n);
      bounds[tried].push_back(score + query_rests[tried] * rests[static_cast<size_t>(i)][tried]);
    }
    scores.push_back(score);
  }
  std::nth_element(scores.begin(), scores.begin() + (wanted - 1), scores.end(), std::greater<>());
  const float least = scores[static_cast<size_t>(wanted - 1)];
  std::vector<int64_t> passing;
  for (const std::vector<float>& of_dims : bounds) {
    passing.push_back(std::count_if(of_dims.begin(), of_dims.end(),
                                    [least](float bound) { return bound >= least; }));
  }
  return passing;
}

// Every number of dims that is tried, with the share that passes among the rotated items.
std::vector<PartialScan> try_scans(Matrix<const float> items, int64_t wanted, ThreadPool* pool) {
  std::vector<std::vector<float>> rests(static_cast<size_t>(items.rows));
  for (int64_t i = 0; i < items.rows; ++i) {
    rests[static_cast<size_t>(i)] = rests_of(items.row(i), items.cols);
  }
  std::vector<std::vector<int64_t>> passing(static_cast<size_t>(kSampleQueries));
  for_each(pool, kSampleQueries, [&](int64_t q) {
    passing[static_cast<size_t>(q)] =
        count_passing(items, rests, q * items.rows / kSampleQueries, wanted);
  });
  std::vector<PartialScan> tried;
  for (size_t n = 0; n < passing.front().size(); ++n) {
    int64_t total = 0;
    for (const std::vector<int64_t>& of_query : passing) total += of_query[n];
    const auto pairs = static_cast<double>(kSampleQueries * items.rows);
    tried.push_back({static_cast<int64_t>(n + 1) * kDimsApart, static_cast<double>(total) / pairs});
  }
  return tried;
}

}  // namespace

float length_of(const float* begin, const float* end) {
  double squares = 0;
  for (const float* value = begin; value != end; ++value) {
    squares += double{*value} * double{*value};
  }
  return static_cast<float>(std::sqrt(squares) * kRoundUp);
}

std::shared_ptr<const Rotation> Rotation::find(const ItemVectors& vectors, ThreadPool* pool) {
  const int64_t dim = vectors.dim();
  if (dim <= kDimsApart || dim > kMostRotatedDims || vectors.rows() < kSampleRows) return nullptr;
  if (axes_bytes(dim) > axes_room(dim) * static_cast<double>(vectors.rows())) return nullptr;
  std::vector<float> memory;
  const Matrix<const float> sample = spread_rows(vectors, kSampleRows, memory);
  auto found = std::make_shared<Rotation>();
  found->dim_ = dim;
  found->axes_ = principal_axes(second_moments(sample, pool), dim);
  std::vector<float> turned(memory.size());
  const Matrix<const float> rotated(turned.data(), kSampleRows, dim);
  const auto rotate = [&] {
    for_each(pool, kSampleRows,
             [&](int64_t row) { found->apply(sample.row(row), turned.data() + row * dim); });
  };
  rotate();
  found->choose_scans(rotated, vectors.rows(), pool);

  // Between the ends of the scans no axis needs to come before another.
  std::vector<int64_t> ends = {dim};
  for (const PartialScan& scan : found->scans_) ends.push_back(scan.dims);
  std::sort(ends.begin(), ends.end());
  std::mt19937_64 random(1);  // the same index for the same vectors
  int64_t begin = 0;
  for (const int64_t end : ends) {
    mix(found->axes_, dim, begin, end, random);
    begin = end;
  }
  rotate();
  const bool flatter = mean_largest(rotated) < kWorthwhile * mean_largest(sample);
  if (found->scans_.empty() && !flatter) return nullptr;
  found->find_error();
  return found;
}

std::shared_ptr<const Rotation> Rotation::of(Matrix<const float> axes,
                                             std::vector<PartialScan> scans) {
  auto rotation = std::make_shared<Rotation>();
  rotation->dim_ = axes.cols;
  rotation->axes_.assign(axes.data, axes.data + axes.rows * axes.cols);
  rotation->scans_ = std::move(scans);
  rotation->find_error();
  return rotation;
}

// A coordinate is a sum of dim products of fp32 values whose sizes add up to at most 1.
void Rotation::find_error() {
  const double length = static_cast<double>(dim_);
  error_ = defect(axes_, dim_) + 2.1 * std::sqrt(length) * (length + 1) * 0x1p-24;
}

// Those that cost least for few and for many queries, over rotated items that stand for `rows`.
void Rotation::choose_scans(Matrix<const float> items, int64_t rows, ThreadPool* pool) {
  const double share = kWanted / static_cast<double>(rows);
  const auto wanted = std::max<int64_t>(1, std::llround(share * static_cast<double>(items.rows)));
  const std::vector<PartialScan> tried = try_scans(items, wanted, pool);
  constexpr int64_t kQueries[kMostScans] = {1, 4, 16, 64};
  for (const int64_t queries : kQueries) {
    const PartialScan* const scan = cheapest(tried, dim_, queries, kChosenFor);
    const auto same = [scan](const PartialScan& other) { return other.dims == scan->dims; };
    if (scan != nullptr && std::none_of(scans_.begin(), scans_.end(), same)) {
      scans_.push_back(*scan);
    }
  }
}

void Rotation::apply(const float* in, float* out) const {
  // All coordinates side by side, which compilers turn into vectors.
  std::fill(out, out + dim_, 0.0f);
  for (int64_t d = 0; d < dim_; ++d) {
    const float* const of_axes = axes_.data() + d * dim_;
    for (int64_t axis = 0; axis < dim_; ++axis) out[axis] += in[d] * of_axes[axis];
  }
}

bool Rotation::pays(const PartialScan& scan, double passing, int64_t queries,
                    double product_cost) const {
  // Several times as many items pass a guessed bound as are scored in the end. One of a lone query
  // costs as one of many, for only those that are scored wait for memory.
  const double found = kScoreCost * static_cast<double>(queries) * passing;
  return scan_cost(scan, queries, product_cost) + found < scan_cost(dim_, queries, product_cost);
}

const PartialScan* Rotation::best(int64_t queries, double product_cost) const {
  return cheapest(scans_, dim_, queries, product_cost);
}

}  // namespace recengine
