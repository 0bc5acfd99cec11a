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

CodeScans::CodeScans(const CodedQueries& queries, int64_t first_tile, int64_t tiles)
    : queries_(queries), kernel_(queries.kernel_), first_tile_(first_tile) {
  const CodeView& view = queries.view_;
  if (kernel_.begin != nullptr) kernel_.begin(view.steps, queries.tile_size(0));
  const int64_t lines = view.steps * kStepBytes / 2 / kLineBytes;
  part_lines_ = kernel_.shares_ahead ? (lines + tiles - 1) / tiles : lines;
  pairs_ = (view.first_step + view.steps + 1) / 2;
  part_pairs_ = (pairs_ + tiles - 1) / tiles;
  // Of a partial scan the low bits are not one after another.
  const bool split = queries.items_.split();
  unpack_fetches_ = split && (kernel_.shares_ahead || view.partial != nullptr);
  if (!split) return;
  constexpr int64_t kApart = kLineBytes * 33;  // the same places in two pages are read in turns
  const int64_t size = pairs_ * 2 * kStepBytes;
  static thread_local std::vector<uint8_t> memory;
  memory.resize(static_cast<size_t>(2 * size + kApart + kLineBytes));
  const auto unaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory.data()));
  unpacked_[0].codes = memory.data() + (kLineBytes - unaligned % kLineBytes);
  unpacked_[1].codes = unpacked_[0].codes + size + kApart;
}

CodeScans::~CodeScans() {
  if (kernel_.end != nullptr) kernel_.end();
}

CoarseQuery::CoarseQuery(const CodedQueries& queries, int64_t q)
    : kernel_(queries.kernel_),
      items_(queries.items_),
      view_(queries.view_),
      query_(queries[q]),
      codes_(static_cast<size_t>(items_.steps() * kStepDims)) {
  const int64_t first = q / queries.tile_queries() * queries.tile_queries();
  const int8_t* const tile = queries.codes_.data() + first * queries.stride();
  const int64_t apart = kernel_.by_query ? 1 : queries.tile_size(first);
  const int64_t before = kernel_.by_query ? (q - first) * view_.steps : q - first;
  for (int64_t step = 0; step < view_.steps; ++step) {
    std::copy_n(tile + (before + step * apart) * kStepDims, kStepDims,
                codes_.begin() + (view_.first_step + step) * kStepDims);
  }
}

void CoarseQuery::set_thresholds(float wanted, const BlockTerms& blocks,
                                 int32_t* thresholds) const {
  const int32_t offset = query_.offset / kCodeOffset * (kCodeOffset - kCoarseMiddle);
  kernel_.thresholds({wanted - query_.slack, query_.error_share, 1 / query_.scale, offset},
                     blocks.coarse_errors, blocks.inverse_scales, blocks.size, thresholds);
}

uint64_t CoarseQuery::scan(int64_t block, int32_t threshold, int64_t ahead,
                           int32_t* products) const {
  const int64_t first = view_.first_step * kStepBytes / 2;
  return kernel_.scan_coarse(
      {items_.high(block) + first, view_.steps, codes_.data() + view_.first_step * kStepDims,
       threshold, items_.high(ahead < 0 ? block : ahead) + first},
      products);
}

const uint8_t* CoarseQuery::low(int64_t block, int64_t group) const {
  return items_.low(block) + group * (items_.steps() / 2) * kLineBytes;
}

const uint8_t* CoarseQuery::last(int64_t block, int64_t group) const {
  if (items_.steps() % 2 == 0) return nullptr;
  return items_.low(block) + items_.steps() / 2 * kStepBytes + group / 2 * kLineBytes;
}

void CoarseQuery::fetch_low(int64_t block, int64_t group) const {
  const uint8_t* const lines = low(block, group);
  for (int64_t pair = 0; pair < items_.steps() / 2; ++pair) {
    __builtin_prefetch(lines + pair * kLineBytes);
  }
  __builtin_prefetch(last(block, group));
}

uint32_t CoarseQuery::scan_low(int64_t block, int64_t group, int32_t threshold,
                               int32_t* products) const {
  return kernel_.scan_low({low(block, group), last(block, group), static_cast<int>(group),
                           items_.steps(), codes_.data(), threshold},
                          products);
}

}  // namespace recengine
