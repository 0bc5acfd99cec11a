#include "triton/row_cost.h"

#include <algorithm>
#include <limits>

namespace recengine::triton {
namespace {

constexpr double kSmoothing = 1.0 / 8;

// A batch that took longer than so many times what was expected counts as if it had taken that: it
// was held up by something else, and what waits must not be refused for it. Work that did grow is
// known after some batches.
constexpr double kMostGrowth = 2;

constexpr double kUnknown = std::numeric_limits<double>::infinity();

double rows_of(size_t size) { return double(int64_t{1} << size); }

}  // namespace

size_t RowCost::size_of(int64_t rows) {
  size_t size = 0;
  while (size + 1 < kSizes && int64_t{1} << size < rows) ++size;
  return size;
}

double RowCost::row_ns(int64_t rows) const {
  const Size& size = sizes_[size_of(rows)];
  return size.measured ? size.row_ns : guess(rows).row_ns;
}

// Of a size that was not measured, by the nearest that are known. A row takes no more than in a
// smaller batch and no less than in a larger one, and all rows no more than all of the larger.
RowCost::Guess RowCost::guess(int64_t rows) const {
  const size_t own = size_of(rows);
  size_t smaller = own;
  while (smaller > 0 && !sizes_[smaller].measured) --smaller;
  size_t larger = own + 1;
  while (larger < kSizes && sizes_[larger].row_ns == 0) ++larger;
  const double from = rows_of(smaller);
  const double from_ns = sizes_[smaller].measured ? sizes_[smaller].row_ns : 0;
  const double to = rows_of(larger);
  const double to_ns = larger < kSizes ? sizes_[larger].row_ns : 0;

  double most_ns = from_ns > 0 ? from_ns : kUnknown;
  if (to_ns > 0) most_ns = std::min(most_ns, to * to_ns / double(rows));
  double guess_ns = sizes_[own].row_ns;  // a warm-up's
  if (guess_ns == 0 && from_ns > 0 && to_ns > 0) {
    const double share = (double(rows) - from) / (to - from);
    guess_ns = (from * from_ns + share * (to * to_ns - from * from_ns)) / double(rows);
  } else if (guess_ns == 0) {
    guess_ns = from_ns;
  }
  return {std::min(std::max(guess_ns, to_ns), most_ns), most_ns};
}

void RowCost::learn(int64_t rows, double work_ns, bool is_warmup) {
  const double sample_ns = work_ns / double(rows);
  Size& size = sizes_[size_of(rows)];
  if (is_warmup) {
    if (!size.measured) size.row_ns = sample_ns;
  } else if (size.measured) {
    const double counted_ns = std::min(sample_ns, kMostGrowth * size.row_ns);
    size.row_ns += kSmoothing * (counted_ns - size.row_ns);
  } else {
    size = {std::min(sample_ns, kMostGrowth * guess(rows).most_ns), true};
  }
}

}  // namespace recengine::triton
