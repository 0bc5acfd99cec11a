// Bounds to begin a search with, guessed from a sample of the catalog: most items are ruled out
// from the first, and few are ever candidates. Who uses a guess checks that K items reach it.
#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/thread_pool.h"
#include "ops/coded_queries.h"
#include "ops/rank.h"
#include "ops/search.h"

namespace recengine {
namespace {

constexpr int64_t kSampledBlocks = 32;  // or more
constexpr int64_t kMostStride = 127;    // from one of them to the next
constexpr int64_t kMostBlocks = 8192;   // in a sample; larger catalogs have a longer stride
constexpr int64_t kBlocksPerPart = 64;  // scored by one thread
constexpr int64_t kLeastStride = 3;     // that makes a sample worth it

constexpr int64_t kGroups = kBlockItems / kSampleGroupItems;

// An item in the sample.
struct SampledItem {
  int64_t block;  // of the sample
  int64_t place;  // in the block
};

// Every stride-th block of the catalog, in full even where searches read it in part: only that
// estimates scores.
class Sample {
 public:
  Sample(const Context& context, const Search& search, int64_t first, int64_t count, int64_t stride)
      : search_(search),
        codes_(*search.index->codes()),
        first_(first),
        stride_(stride),
        blocks_((codes_.blocks() - stride / 2 + stride - 1) / stride),
        queries_(context.isa, search, first, count, codes_.full_view()),
        excluded_(static_cast<size_t>(count)) {}

  // For every query that has any, before its scores are taken. Rows may lie behind the index: of
  // items that were appended to it.
  void find_excluded(int64_t q) {
    std::vector<SampledItem>& found = excluded_[static_cast<size_t>(q)];
    const auto stride = static_cast<uint32_t>(stride_);
    const auto first = static_cast<uint32_t>(block(0));
    for (const uint32_t row : search_.exclusions->of(first_ + q)) {
      const uint32_t behind = row / kBlockItems - first;
      if (row / kBlockItems < first || behind % stride != 0) continue;
      found.push_back({behind / stride, row % kBlockItems});
    }
    std::sort(found.begin(), found.end(),
              [](const SampledItem& a, const SampledItem& b) { return a.block < b.block; });
  }

  int64_t blocks() const { return blocks_; }
  const CodedQueries& queries() const { return queries_; }

  // About the best scores in a block's groups for a tile of queries; -inf for a group of which no
  // item is allowed. `scores` are [queries, blocks * kGroups].
  void score_block(CodeScans& scans, int64_t tile, int64_t i, Matrix<float> scores) const {
    constexpr int32_t kAll = -kMostThreshold;
    const uint64_t allowed = allowed_items(search_, block(i));
    const int64_t begin = tile * queries_.tile_queries();
    const int64_t end = std::min(begin + queries_.tile_queries(), scores.rows);
    CodeHits hits;
    const int64_t next = i + 1 < blocks_ ? block(i + 1) : -1;
    const int64_t ahead = i + 2 < blocks_ ? block(i + 2) : -1;
    scans.scan(tile, block(i), &kAll, 0, next, ahead, hits);
    for (int64_t q = begin; q < end; ++q) {
      int32_t* const products = hits.products[q - begin];
      for (uint64_t dropped = ~allowed; dropped != 0; dropped &= dropped - 1) {
        products[__builtin_ctzll(dropped)] = kAll;
      }
      const std::vector<SampledItem>& excluded = excluded_[static_cast<size_t>(q)];
      auto item = std::lower_bound(excluded.begin(), excluded.end(), i,
                                   [](const SampledItem& a, int64_t b) { return a.block < b; });
      for (; item != excluded.end() && item->block == i; ++item) products[item->place] = kAll;
      const float unit = queries_.unit(q, block(i));
      const float margin = kGuessMargin * queries_.bound(q, block(i));
      const int32_t offset = queries_[q].offset;
      for (int64_t group = 0; group < kGroups; ++group) {
        const int32_t* const first = products + group * kSampleGroupItems;
        const int32_t best = *std::max_element(first, first + kSampleGroupItems);
        scores.row(q)[i * kGroups + group] =
            best == kAll ? kLowest : static_cast<float>(best - offset) * unit - margin;
      }
    }
  }

  // Of a query's scores.
  float guess(Span<const float> scores) const {
    return value_of_rank(scores, rank_in_sample(search_.k(), stride_));
  }

  // The share of the groups with these scores that a coarse scan leaves.
  double coarse_share(Span<const float> scores, float guess) const {
    const float least = guess - codes_.mean_coarse_error();
    return static_cast<double>(count_from(scores, least)) / static_cast<double>(scores.size);
  }

 private:
  int64_t block(int64_t i) const { return stride_ / 2 + i * stride_; }

  const Search& search_;
  const ItemCodes& codes_;
  int64_t first_;   // query of the call
  int64_t stride_;  // from one block to the next
  int64_t blocks_;  // in the sample
  CodedQueries queries_;
  std::vector<std::vector<SampledItem>> excluded_;  // of each query, ascending
};

}  // namespace

SampleBounds sample_bounds(const Context& context, const Search& search, int64_t first,
                           int64_t count, ThreadPool* pool) {
  SampleBounds found{std::vector<float>(static_cast<size_t>(count), kLowest)};
  const int64_t blocks = search.index->codes()->blocks();
  const int64_t wanted =
      std::max(std::min(blocks / kSampledBlocks, kMostStride), blocks / kMostBlocks);
  const int64_t stride = (wanted - 1) | 1;  // odd: catalogs may repeat themselves by powers of two
  if (stride < kLeastStride) return found;
  Sample sample(context, search, first, count, stride);
  if (!search.exclusions->empty()) {
    for_each(pool, count, [&](int64_t q) { sample.find_excluded(q); });
  }
  const int64_t sampled = sample.blocks() * kGroups;
  const std::unique_ptr<float[]> memory(new float[static_cast<size_t>(count * sampled)]);
  const Matrix<float> scores(memory.get(), count, sampled);
  const int64_t tiles = sample.queries().tiles();
  const int64_t parts = (sample.blocks() + kBlocksPerPart - 1) / kBlocksPerPart;
  for_each(pool, tiles * parts, [&](int64_t task) {
    const int64_t tile = task / parts;
    const int64_t first_block = task % parts * kBlocksPerPart;
    const int64_t end_block = std::min(first_block + kBlocksPerPart, sample.blocks());
    CodeScans scans(sample.queries(), tile, 1);
    for (int64_t i = first_block; i < end_block; ++i) {
      sample.score_block(scans, tile, i, scores);
    }
  });
  for_each(pool, count, [&](int64_t q) {
    found.guesses[static_cast<size_t>(q)] = sample.guess({scores.row(q), sampled});
  });
  if (!search.index->codes()->split() || count > kMostCoarseQueries) return found;
  found.coarse_share = 0;
  for (int64_t q = 0; q < count; ++q) {
    const float guess = found.guesses[static_cast<size_t>(q)];
    found.coarse_share += sample.coarse_share({scores.row(q), sampled}, guess);
  }
  return found;
}

}  // namespace recengine
