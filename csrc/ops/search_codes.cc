// Exact search by a scan of 8-bit codes. With q' and x' what the codes stand for,
//   |<q, x> - <q', x'>| <= |q| |x - x'| + |q - q'| |x'|   (Cauchy-Schwarz)
// so a product of codes bounds the score of its item from both sides. An item whose upper bound is
// below the K-th best lower bound cannot be among the K best; the others are scored.
//
// A partial scan reads fewer dimensions of rotated vectors and the length of each item's rest. With
// the lengths as one more dimension of query and item its product is an upper bound of the score,
// and the same bounds on its codes hold. It has no lower bound: candidates are scored in batches.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/isa.h"
#include "ops/code_scan_kernel.h"
#include "ops/search.h"
#include "ops/sort_key.h"

namespace recengine {
namespace {

constexpr int64_t kBlocksAhead = 2;             // fetched before they are scanned
constexpr int64_t kBlocksPerStep = 16;          // scanned with the thresholds of their beginning
constexpr int64_t kScoredTogether = 512;        // candidates of a partial scan
constexpr int64_t kSampledBlocks = 128;         // that guesses come from, or more
constexpr int64_t kMostStride = 64;             // from one of these to the next
constexpr int64_t kSampleRank = 6;              // beyond what is expected above the K-th best
constexpr int64_t kLeastStride = 8;             // that makes a sample worth it
constexpr int64_t kProductsPerChunk = 1 << 22;  // below, waking a thread costs more than it saves
constexpr float kLargestCode = 127;
constexpr float kLargestThreshold = 1e9f;  // beyond any sum of products, within 32 bits

// Relative error of the few fp32 operations that make a bound, and more.
constexpr double kRounding = 2e-6;

CodeScan code_scan_for(Isa isa) {
  return pick_kernel(isa, code_scan_portable, code_scan_avx2, code_scan_avx2,
                     code_scan_avx512_vnni);
}

// A query as signed codes: about scale * code, and its part of the bounds.
struct CodedQuery {
  float scale = 1;
  int32_t offset = 0;     // kCodeOffset * sum of its codes: what the items' offset adds to products
  float slack = 0;        // of every bound
  float error_share = 0;  // of a block's error that is added to that
};

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

CodedQuery encode(const std::vector<float>& values, const ItemCodes& items, int64_t dim,
                  int8_t* codes) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::fabs(value));
  CodedQuery query;
  if (largest > 0) query.scale = largest / kLargestCode;
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

// An item that may be among the best, with bounds of its score; both are the score once known.
struct Candidate {
  float lower;
  float upper;
  uint32_t row;
};

// Those of one query that one thread has found.
struct Candidates {
  Candidate* items = nullptr;  // [capacity]
  int64_t size = 0;
  int64_t known = 0;      // of the first ones the score is known
  int64_t rank = 0;       // whose lower bound is a bound for all
  int64_t limit = 0;      // size at which they are looked through
  int64_t scored = 0;     // so far, those that were dropped included
  ExcludedRows excluded;  // of the rows that are being scanned

  void open(int64_t wanted_rank, int64_t growth, ExcludedRows rows) {
    size = 0;
    known = 0;
    scored = 0;
    rank = wanted_rank;
    limit = rank + growth;
    excluded = rows;
  }
};

class CodeSearch {
 public:
  CodeSearch(const Context& context, const Search& search, int64_t first, int64_t count,
             bool may_sample, int64_t scored_before)
      : context_(context),
        may_sample_(may_sample),
        sample_stride_(std::min(search.index->codes()->blocks() / kSampledBlocks, kMostStride)),
        scored_before_(scored_before),
        search_(search),
        index_(*search.index),
        codes_(*search.index->codes()),
        view_(codes_.view(count)),
        scan_(code_scan_for(context.isa)),
        gather_(gather_for(context.isa)),
        first_(first),
        count_(count),
        k_(search.k()),
        bounds_(static_cast<size_t>(count)),
        guesses_(static_cast<size_t>(count), kLowest) {
    const int64_t worth = index_.rows() * index_.dim() / kProductsPerChunk * count;
    const int64_t steps = (codes_.blocks() + kBlocksPerStep - 1) / kBlocksPerStep;
    num_chunks_ = count_chunks(context.pool, worth, steps);
    if (num_chunks_ > 1) pool_ = context.pool;
    chunk_blocks_ = (steps + num_chunks_ - 1) / num_chunks_ * kBlocksPerStep;
    growth_ = k_ + (view_.partial == nullptr ? kBlockItems : kScoredTogether);
    capacity_ = 2 * k_ + 4 * growth_;
    const int64_t lists =
        pool_ == nullptr ? 1 : std::min<int64_t>(pool_->num_workers() + 1, num_chunks_);
    memory_.reset(new Candidate[static_cast<size_t>(lists * count * capacity_)]);
    candidates_.resize(static_cast<size_t>(lists * count));
    for (int64_t list = 0; list < lists * count; ++list) {
      candidates_[static_cast<size_t>(list)].items = memory_.get() + list * capacity_;
      candidates_[static_cast<size_t>(list)].open(k_, growth_, ExcludedRows());
    }
    for (int64_t list = 0; list < lists; ++list) {
      idle_.push_back(candidates_.data() + list * count);
    }
    query_codes_.resize(static_cast<size_t>(count * stride()));
    for (std::atomic<float>& bound : bounds_) bound.store(kLowest, std::memory_order_relaxed);
    for (int64_t q = 0; q < count; ++q) {
      queries_.push_back(encode(viewed(search.queries.row(first + q), codes_, view_, index_.dim()),
                                codes_, index_.dim(), query_codes_.data() + q * stride()));
    }
  }

  void run() {
    if (may_sample_ && sample_stride_ >= kLeastStride) {
      const int64_t tiles = (count_ + kTileQueries - 1) / kTileQueries;
      for_each(pool_, tiles, [this](int64_t tile) { sample(tile * kTileQueries); });
    }
    for_each(pool_, num_chunks_, [this](int64_t chunk) {
      Candidates* const found = take();
      scan_chunk(chunk, found);
      give_back(found);
    });
    for_each(pool_, count_, [this](int64_t q) { answer(q); });
  }

 private:
  int64_t stride() const { return view_.steps * kStepDims; }
  std::atomic<float>& bound(int64_t q) { return bounds_[static_cast<size_t>(q)]; }
  const CodedQuery& query(int64_t q) const { return queries_[static_cast<size_t>(q)]; }

  // The candidates of all queries, for one thread: there are as many as threads.
  Candidates* take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Candidates* const found = idle_.back();
    idle_.pop_back();
    return found;
  }

  void give_back(Candidates* found) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(found);
  }

  // Guesses the bounds of a tile's queries from some of the blocks, so that most items are ruled
  // out from the first: about 2 K + 6 strides of all items lie above a guess. answer() checks that
  // there are K.
  void sample(int64_t first) {
    const int64_t end = std::min<int64_t>(first + kTileQueries, count_);
    const int64_t rank = 2 * k_ / sample_stride_ + kSampleRank;
    for (int64_t q = first; q < end; ++q) {
      candidates_[static_cast<size_t>(q)].open(rank, growth_,
                                               ExcludedRows(*search_.exclusions, first_ + q, 0));
    }
    int32_t thresholds[kTileQueries];
    for (int64_t block = sample_stride_ / 2; block < codes_.blocks(); block += sample_stride_) {
      const uint64_t allowed = allowed_items(block);
      if (allowed == 0) continue;
      for (int64_t q = first; q < end; ++q) {
        set_thresholds(q, block, block + 1, thresholds + q - first);
      }
      scan_tile(candidates_.data(), first, end, block, allowed, thresholds, 1,
                codes_at(block + sample_stride_));
    }
    for (int64_t q = first; q < end; ++q) {
      Candidates& found = candidates_[static_cast<size_t>(q)];
      drop(q, found);
      guesses_[static_cast<size_t>(q)] = bound(q).load(std::memory_order_relaxed);
      found.open(k_, growth_, ExcludedRows());
    }
  }

  void scan_chunk(int64_t chunk, Candidates* found) {
    const int64_t begin = chunk * chunk_blocks_;
    const int64_t end = std::min(begin + chunk_blocks_, codes_.blocks());
    for (int64_t q = 0; q < count_; ++q) {
      found[q].excluded = ExcludedRows(*search_.exclusions, first_ + q, begin * kBlockItems);
    }
    static thread_local std::vector<int32_t> thresholds;  // [count, blocks of a step]
    thresholds.resize(static_cast<size_t>(count_ * kBlocksPerStep));
    // Without a guess all are candidates at first: short steps until there are bounds.
    int64_t step = 1;
    for (int64_t block = begin; block < end; step = std::min(2 * step, kBlocksPerStep)) {
      const int64_t step_begin = block;
      const int64_t step_end = std::min(block + step, end);
      for (int64_t q = 0; q < count_; ++q) {
        set_thresholds(q, block, step_end, thresholds.data() + q * kBlocksPerStep);
      }
      for (; block < step_end; ++block) {
        const uint64_t allowed = allowed_items(block);
        if (allowed == 0) continue;
        const int32_t* of_block = thresholds.data() + (block - step_begin);
        for (int64_t q = 0; q < count_; q += kTileQueries) {
          scan_tile(found, q, std::min<int64_t>(q + kTileQueries, count_), block, allowed,
                    of_block + q * kBlocksPerStep, kBlocksPerStep,
                    q == 0 ? codes_at(block + kBlocksAhead) : nullptr);
        }
      }
    }
  }

  // Bits of the block's items that are there and that the bitmap allows.
  uint64_t allowed_items(int64_t block) const {
    const int64_t left = index_.rows() - block * kBlockItems;
    const uint64_t there = left >= kBlockItems ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
    return search_.allow_bitmap == nullptr ? there : there & search_.allow_bitmap[block];
  }

  // The codes of a block, or null behind the last.
  const uint8_t* codes_at(int64_t block) const {
    return block < codes_.blocks() ? codes_.block(view_, block) : nullptr;
  }

  // The least product, offset included, with which an item of each block can still be wanted.
  void set_thresholds(int64_t q, int64_t first_block, int64_t end_block, int32_t* thresholds) {
    const CodedQuery& coded = query(q);
    const float wanted = bound(q).load(std::memory_order_relaxed) - coded.slack;
    const float inverse = 1 / coded.scale;
    for (int64_t block = first_block; block < end_block; ++block) {
      const float product =
          (wanted - view_.errors[static_cast<size_t>(block)] * coded.error_share) *
          (inverse * codes_.inverse_scales()[block]);
      const float clamped = std::max(-kLargestThreshold, std::min(product, kLargestThreshold));
      // Rounded down, and by one more for what fp32 has rounded up.
      thresholds[block - first_block] = static_cast<int32_t>(clamped) - 2 + coded.offset;
    }
  }

  // Queries [first, end), at most a tile of them, against one block; found is [queries].
  void scan_tile(Candidates* found, int64_t first, int64_t end, int64_t block, uint64_t allowed,
                 const int32_t* thresholds, int64_t threshold_stride, const uint8_t* ahead) {
    CodeHits hits;
    const CodeTile tile = {codes_.block(view_, block),
                           view_.steps,
                           query_codes_.data() + first * stride(),
                           static_cast<int>(end - first),
                           thresholds,
                           threshold_stride,
                           ahead};
    for (uint32_t any = scan_(tile, hits); any != 0; any &= any - 1) {
      const int hit = __builtin_ctz(any);
      offer(found[first + hit], first + hit, block, hits.items[hit] & allowed, hits.products[hit]);
    }
  }

  void offer(Candidates& found, int64_t q, int64_t block, uint64_t items, const int32_t* products) {
    const CodedQuery& coded = query(q);
    const float slack = coded.slack + view_.errors[static_cast<size_t>(block)] * coded.error_share;
    const float scale = coded.scale * codes_.scales()[block];
    float wanted = bound(q).load(std::memory_order_relaxed);
    for (; items != 0; items &= items - 1) {
      const int item = __builtin_ctzll(items);
      const float about = static_cast<float>(products[item] - coded.offset) * scale;
      if (about + slack < wanted) continue;
      const int64_t row = block * kBlockItems + item;
      if (found.excluded.holds(row)) continue;
      if (found.size == found.limit) {
        tighten(q, found);
        wanted = bound(q).load(std::memory_order_relaxed);
      }
      const float lower = view_.partial == nullptr ? about - slack : kLowest;
      found.items[found.size++] = {lower, about + slack, static_cast<uint32_t>(row)};
    }
  }

  // Drops what the bounds now rule out and, if that is too little, what the scores rule out.
  void tighten(int64_t q, Candidates& found) {
    drop(q, found);
    if (found.size > capacity_ - growth_) {
      score(q, found);
      const auto better = [](const Candidate& a, const Candidate& b) {
        return sort_key(a.lower, a.row) > sort_key(b.lower, b.row);
      };
      std::nth_element(found.items, found.items + found.rank - 1, found.items + found.size, better);
      found.size = found.known = found.rank;
      raise(bound(q), found.items[found.rank - 1].lower);
    }
    found.limit = found.size + growth_;
  }

  // Raises the query's bound to the lower bound of the rank and drops what is below it.
  void drop(int64_t q, Candidates& found) {
    if (view_.partial != nullptr) score(q, found);
    if (found.size >= found.rank) {
      static thread_local std::vector<float> lowers;
      lowers.clear();
      for (int64_t i = 0; i < found.size; ++i) lowers.push_back(found.items[i].lower);
      std::nth_element(lowers.begin(), lowers.begin() + found.rank - 1, lowers.end(),
                       std::greater<>());
      raise(bound(q), lowers[static_cast<size_t>(found.rank - 1)]);
    }
    const float wanted = bound(q).load(std::memory_order_relaxed);
    const auto ruled_out = [wanted](const Candidate& c) { return c.upper < wanted; };
    Candidate* const known = found.items + found.known;
    found.known -= std::count_if(found.items, known, ruled_out);
    found.size = std::remove_if(found.items, found.items + found.size, ruled_out) - found.items;
  }

  // Replaces the bounds of all candidates by their scores.
  void score(int64_t q, Candidates& found) const {
    static thread_local std::vector<uint32_t> rows;
    static thread_local std::vector<float> scores;
    rows.clear();
    for (int64_t i = found.known; i < found.size; ++i) rows.push_back(found.items[i].row);
    scores.resize(rows.size());
    const auto count = static_cast<int64_t>(rows.size());
    gather_(index_.unit_vectors(), {rows.data(), count}, search_.queries.row(first_ + q),
            scores.data());
    for (const float score : scores) {
      Candidate& candidate = found.items[found.known++];
      candidate.lower = candidate.upper = score;
    }
    found.scored += count;
  }

  void answer(int64_t q) {
    Candidates found;
    found.scored = scored_before_;
    found.rank = k_;
    std::vector<Candidate> all;  // those with known scores first
    std::vector<uint64_t> keys;
    for (size_t list = static_cast<size_t>(q); list < candidates_.size();
         list += static_cast<size_t>(count_)) {
      const Candidates& part = candidates_[list];
      all.insert(all.begin() + found.known, part.items, part.items + part.known);
      all.insert(all.end(), part.items + part.known, part.items + part.size);
      found.known += part.known;
      found.scored += part.scored;
    }
    found.items = all.data();
    found.size = static_cast<int64_t>(all.size());
    if (view_.partial != nullptr) score(q, found);
    const float guess = guesses_[static_cast<size_t>(q)];
    const auto above = std::count_if(all.begin(), all.end(),
                                     [guess](const Candidate& c) { return c.lower >= guess; });
    if (guess > kLowest && above < k_) {
      // The guess was too high, or there are fewer than K: search again without one.
      CodeSearch(context_, search_, first_ + q, 1, /*may_sample=*/false, found.scored).run();
      return;
    }
    drop(q, found);
    score(q, found);
    keys.reserve(static_cast<size_t>(found.size));
    for (int64_t i = 0; i < found.size; ++i) {
      keys.push_back(sort_key(found.items[i].lower, found.items[i].row));
    }
    write_answer(keys, search_, first_ + q, found.scored,
                 query(q).slack + view_.largest_error * query(q).error_share);
  }

  const Context context_;
  bool may_sample_;
  int64_t sample_stride_;  // in blocks
  int64_t scored_before_;  // of the one query, in a search that did not answer it
  const Search& search_;
  const ItemIndex& index_;
  const ItemCodes& codes_;
  const CodeView& view_;
  CodeScan scan_;
  CosineGather gather_;
  ThreadPool* pool_ = nullptr;  // null also for what is not worth several threads
  int64_t first_;               // query of the call
  int64_t count_;
  int64_t k_;
  int64_t num_chunks_;
  int64_t chunk_blocks_;
  int64_t growth_;                       // of Candidates between looking them through
  int64_t capacity_;                     // of each Candidates
  std::unique_ptr<Candidate[]> memory_;  // [threads, queries, capacity]
  std::vector<Candidates> candidates_;   // [threads, queries]
  std::mutex mutex_;
  std::vector<Candidates*> idle_;    // [queries] each; guarded by mutex_
  std::vector<int8_t> query_codes_;  // [queries, steps * kStepDims]
  std::vector<CodedQuery> queries_;
  std::vector<std::atomic<float>> bounds_;  // what an item must reach to be wanted
  std::vector<float> guesses_;              // those that the bounds began with
};

}  // namespace

void search_codes(const Context& context, const Search& search) {
  for (int64_t first = 0; first < search.queries.count; first += kQueriesPerPass) {
    const int64_t count = std::min(kQueriesPerPass, search.queries.count - first);
    CodeSearch(context, search, first, count, /*may_sample=*/true, /*scored_before=*/0).run();
  }
}

}  // namespace recengine
