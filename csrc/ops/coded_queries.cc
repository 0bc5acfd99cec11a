#include "ops/coded_queries.h"

#include <algorithm>
#include <cmath>

namespace recengine {
namespace {

// Relative error of the few fp32 operations that make a bound, and more.
constexpr double kRounding = 2e-6;

// What a view multiplies the items' codes with: the rests' lengths, then dimensions. Zeros behind.
std::vector<float> viewed(const float* unit, const ItemCodes& items, const CodeView& view,
                          int64_t dim) {
  std::vector<float> values(unit, unit + dim);
  if (items.rotation() != nullptr) items.rotation()->apply(unit, values.data());
  if (view.partial != nullptr) {
    const float rest = length_of(values.data() + view.partial->dims, values.data() + dim);
    values.insert(values.begin(), kStepDims, 0.0f);
    values[static_cast<size_t>(view.rest_slot)] = rest;
  }
  values.resize(static_cast<size_t>(view.steps * kStepDims), 0.0f);
  return values;
}

// The most that values of one sign add up to in one of the sums that kMostSummed is for.
float most_summed(const std::vector<float>& values) {
  constexpr size_t kDims = kStepDims * kSummedSteps;
  float most = 0;
  for (size_t first = 0; first < values.size(); first += kDims) {
    const size_t end = std::min(first + kDims, values.size());
    for (size_t half = first; half < first + kStepDims; half += kSummedDims) {
      float positive = 0;
      float negative = 0;
      for (size_t step = half; step < end; step += kStepDims) {
        for (size_t d = step; d < step + kSummedDims; ++d) {
          (values[d] > 0 ? positive : negative) += values[d];
        }
      }
      most = std::max({most, positive, -negative});
    }
  }
  return most;
}

// The scale at which the codes of the values fit a kernel.
float fitting_scale(const std::vector<float>& values, bool summed_in_16_bits) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::fabs(value));
  if (largest == 0) return 1;
  const float scale = largest / kLargestCode;
  if (!summed_in_16_bits) return scale;
  constexpr float kRounded = 0.5f * kSummedSteps * kSummedDims;  // a code may be half a unit larger
  return std::max(scale, most_summed(values) / (kMostSummed - kRounded));
}

CodedQuery encode(const std::vector<float>& values, const ItemCodes& items, int64_t dim,
                  bool summed_in_16_bits, int8_t* codes) {
  CodedQuery query;
  query.scale = fitting_scale(values, summed_in_16_bits);
  double squares = 0;
  int32_t sum = 0;
  for (const float value : values) {
    const float code = std::nearbyint(value / query.scale);
    const double left = double{value} - double{query.scale} * double{code};
    squares += left * left;
    *codes = static_cast<int8_t>(code);
    sum += *codes++;
  }
  query.offset = kCodeOffset * sum;
  // |q| <= 1 + 1e-6 + turned, and |x'| <= |x| + |x - x'|. A score itself is rounded dim + 4 times.
  const double error = std::sqrt(squares);
  const double turned = items.rotation() == nullptr ? 0 : items.rotation()->error();
  const double rounding = kRounding + double(dim + 4) * 0x1p-24 + turned;
  query.slack =
      static_cast<float>((error + rounding) * double{items.largest_norm()} * (1 + kRounding));
  query.error_share = static_cast<float>((1 + turned + error) * (1 + kRounding));
  return query;
}

}  // namespace

CodedQueries::CodedQueries(Isa isa, const Search& search, int64_t first, int64_t count,
                           const CodeView& view)
    : kernel_(code_scan_for(isa, count)),
      items_(*search.index->codes()),
      view_(view),
      count_(count) {
  const int64_t dim = search.index->dim();
  codes_.resize(static_cast<size_t>(tiles() * tile_queries() * stride()));
  std::vector<int8_t> codes(static_cast<size_t>(stride()));
  for (int64_t q = 0; q < count; ++q) {
    const std::vector<float> values = viewed(search.queries.row(first + q), items_, view_, dim);
    queries_.push_back(encode(values, items_, dim, kernel_.summed_in_16_bits, codes.data()));
    if (kernel_.by_query) {
      std::copy(codes.begin(), codes.end(), codes_.begin() + q * stride());
      continue;
    }
    const int64_t first_of_tile = q / tile_queries() * tile_queries();
    int8_t* to = codes_.data() + first_of_tile * stride() + (q - first_of_tile) * kStepDims;
    for (int64_t step = 0; step < view_.steps; ++step) {
      std::copy_n(codes.data() + step * kStepDims, kStepDims, to);
      to += tile_size(first_of_tile) * kStepDims;
    }
  }
}

}  // namespace recengine
