#include "triton/batch_cost.h"

#include <algorithm>
#include <limits>

namespace recengine::triton {
namespace {

constexpr double kSmoothing = 1.0 / 8;

// A batch that took longer than so many times what was expected counts as if it had taken that: it
// was held up by something else, and what waits must not be refused for it. Work that did grow is
// known after some batches.
constexpr double kMostGrowth = 2;

}  // namespace

size_t BatchCost::size_of(int64_t rows) {
  size_t size = 0;
  while (size + 1 < kSizes && int64_t{1} << size < rows) ++size;
  return size;
}

// What each size takes at slowness 1. One that ran long ago may have taken more or less than others
// say now: it takes no less than a smaller one that ran last, no more than a larger batch, and no
// more a row than a smaller one. So batches that run correct what would keep those of other sizes
// from being tried.
std::array<double, BatchCost::kSizes> BatchCost::consistent() const {
  std::array<double, kSizes> work{};
  double most_ns = std::numeric_limits<double>::infinity();
  for (size_t i = kSizes; i-- > 0;) {
    const double known_ns =
        i > latest_ ? std::max(sizes_[i].work_ns, sizes_[latest_].work_ns) : sizes_[i].work_ns;
    if (sizes_[i].work_ns > 0) most_ns = std::min(most_ns, known_ns);
    work[i] = most_ns;
  }
  double most_row_ns = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < kSizes; ++i) {
    if (sizes_[i].work_ns == 0) continue;
    most_row_ns = std::min(most_row_ns, work[i] / sizes_[i].rows);
    work[i] = most_row_ns * sizes_[i].rows;
  }
  return work;
}

double BatchCost::work_ns(int64_t rows) const {
  const std::array<double, kSizes> work = consistent();
  const auto wanted = double(rows);
  size_t below = kSizes;
  size_t above = kSizes;
  for (size_t i = 0; i < kSizes && above == kSizes; ++i) {
    if (sizes_[i].work_ns > 0) (sizes_[i].rows <= wanted ? below : above) = i;
  }
  if (below == kSizes && above == kSizes) return 0;
  if (below == kSizes || above == kSizes) {
    const size_t nearest = std::min(below, above);
    return slowness_ * work[nearest] * wanted / sizes_[nearest].rows;
  }
  const double share = (wanted - sizes_[below].rows) / (sizes_[above].rows - sizes_[below].rows);
  return slowness_ * (work[below] + share * (work[above] - work[below]));
}

void BatchCost::learn(int64_t rows, double work_ns, bool is_warmup) {
  const size_t own = size_of(rows);
  Size& size = sizes_[own];
  const Size first = {double(rows), work_ns / slowness_, !is_warmup};
  const double others_say_ns = consistent()[own];  // at most; as does its own
  if (is_warmup) {
    if (size.measured) return;
    size = first;
    for (size_t i = 0; i < own; ++i) {
      if (!sizes_[i].measured) sizes_[i] = {};
    }
    return;
  }
  latest_ = own;
  if (!size.measured) {
    size = first;
    size.work_ns = std::min(size.work_ns, kMostGrowth * others_say_ns);
    return;
  }
  // Others are held against it from now on: not against what it took long ago.
  size.work_ns = std::min(size.work_ns, others_say_ns);
  const double growth = std::min(work_ns / this->work_ns(rows), kMostGrowth) - 1;
  const double mean_rows = size.rows + kSmoothing * (double(rows) - size.rows);
  slowness_ *= 1 + kSmoothing / 2 * growth;
  size.work_ns *= (1 + kSmoothing / 2 * growth) * mean_rows / size.rows;
  size.rows = mean_rows;
}

}  // namespace recengine::triton
