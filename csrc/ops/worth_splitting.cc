#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "cpu/thread_pool.h"
#include "ops/item_codes.h"
#include "ops/item_rows.h"
#include "ops/rank.h"

namespace recengine {
namespace {

// So many codes are read from memory on most machines. From caches whole ones are read faster.
constexpr int64_t kLeastBytes = 32 << 20;

constexpr int64_t kSampleRows = 1 << 14;
constexpr int64_t kSampleQueries = 32;  // items stand in for queries
constexpr double kWanted = 100;         // K that the share is measured for
constexpr double kMostLeft = 0.2;       // of the groups, by a scan that knows the K-th best score

// The share of the groups of items that a coarse scan leaves for one of the items as the query.
double share_left(Matrix<const float> items, int64_t query, int64_t wanted, float error) {
  const float* const of_query = items.row(query);
  std::vector<float> best;  // of each group
  std::vector<float> scores;
  for (int64_t i = 0; i < items.rows; ++i) {
    const float* const item = items.row(i);
    const float score =
        i == query ? -1.0f : std::inner_product(item, item + items.cols, of_query, 0.0f);
    if (i % kGroupItems == 0) best.push_back(score);
    best.back() = std::max(best.back(), score);
    scores.push_back(score);
  }
  const float least = value_of_rank(scores, wanted) - error;
  return static_cast<double>(count_from(best, least)) / static_cast<double>(best.size());
}

}  // namespace

bool worth_splitting(const ItemVectors& vectors, const std::shared_ptr<const Rotation>& rotation,
                     const Context& context) {
  const int64_t rows = vectors.rows();
  if (rows * vectors.dim() < kLeastBytes || rows < kSampleRows) return false;
  if (rotation != nullptr && !rotation->scans().empty()) return false;
  std::vector<float> memory;
  const Matrix<const float> sample = spread_rows(vectors, kSampleRows, memory);
  const auto codes = ItemCodes::pack({sample, {}}, rotation, /*split=*/true, context);
  if (codes == nullptr) return false;
  const double share = kWanted / static_cast<double>(rows);
  const auto wanted = std::max<int64_t>(1, std::llround(share * double{kSampleRows}));
  std::vector<double> left(static_cast<size_t>(kSampleQueries));
  for_each(context.pool, kSampleQueries, [&](int64_t q) {
    left[static_cast<size_t>(q)] =
        share_left(sample, q * kSampleRows / kSampleQueries, wanted, codes->mean_coarse_error());
  });
  return std::accumulate(left.begin(), left.end(), 0.0) < kMostLeft * double{kSampleQueries};
}

}  // namespace recengine
