// Exact search by a scan of 8-bit codes. With q' and x' what the codes stand for,
//   |<q, x> - <q', x'>| <= |q| |x - x'| + |q - q'| |x'|   (Cauchy-Schwarz)
// so a product of codes bounds the score of its item. An item whose upper bound is below the scores
// of K others cannot be among the K best. First the K that look best are scored, then those that
// their scores do not rule out.
//
// A partial scan reads fewer dimensions of rotated vectors and the length of each item's rest. With
// the lengths as one more dimension of query and item its product is an upper bound of the score,
// and the same bounds on its codes hold.
//
// A coarse scan, for few queries, which wait for memory, reads the high four bits of all codes
// first, and the low ones of those groups of items that bounds on the high bits leave.
#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "cpu/isa.h"
#include "ops/coded_queries.h"
#include "ops/item_rows.h"
#include "ops/rank.h"
#include "ops/search.h"
#include "ops/sort_key.h"

namespace recengine {
namespace {

constexpr int64_t kQueriesPerPass = 128;               // bounds the memory of candidates
constexpr int64_t kBlocksAhead = 2;                    // fetched before they are scanned
constexpr int64_t kCoarseAhead = 4;                    // whose high bits are
constexpr int64_t kBlocksPerStep = BlockTerms::kMost;  // with the thresholds of their beginning
constexpr int64_t kTriedBlocks = 32;                   // to see what a partial scan leaves
constexpr int64_t kLeastGrowth = 256;                  // of candidates between looking them through

// Every so many-th block is scanned before the others where bounds are guessed again from what was
// found in these: for queries that wait for products, in a catalog in which that is a larger sample
// than the first. Odd, for catalogs may repeat themselves by powers of two.
constexpr int64_t kFirstStride = 7;
constexpr int64_t kLeastQueries = 8;
constexpr int64_t kLeastBlocks = 512;
constexpr int64_t kLeastSteps = 2;  // for each thread

// Up to this share of groups that are read in full a coarse scan takes less time than another: a
// group's lines are read at random.
constexpr double kMostCoarse = 0.5;
constexpr int64_t kGroupsAhead = 16;  // whose low bits are fetched before they are read

// About the share of items that pass the guessed bounds in a view, from a few blocks.
double passing_share(const ItemCodes& codes, const CodedQueries& queries,
                     const std::vector<float>& guesses) {
  CodeScans scans(queries, 0, queries.tiles());
  const int64_t tile_queries = queries.tile_queries();
  const int64_t blocks = std::min(kTriedBlocks, codes.blocks());
  const auto count = static_cast<int64_t>(guesses.size());
  int64_t passing = 0;
  int32_t thresholds[kMostTileQueries];
  CodeHits hits;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t block = i * codes.blocks() / blocks;
    BlockTerms terms;
    queries.add_block(block, terms);
    for (int64_t tile = 0; tile < queries.tiles(); ++tile) {
      const int64_t first = tile * tile_queries;
      for (int64_t q = first; q < std::min(first + tile_queries, count); ++q) {
        const float wanted = guesses[static_cast<size_t>(q)];
        queries.set_thresholds(q, wanted, terms, thresholds + (q - first));
      }
      uint32_t any = scans.scan(tile, block, thresholds, 1, -1, -1, hits);
      for (; any != 0; any &= any - 1) {
        passing += __builtin_popcountll(hits.items[__builtin_ctz(any)]);
      }
    }
  }
  return static_cast<double>(passing) / static_cast<double>(blocks * kBlockItems * count);
}

// The view to search in: a partial one where it pays for these queries, too. The index chose it for
// queries that are like its items, and those of a model may be far from them.
const CodeView& choose_view(const Context& context, const Search& search, int64_t first,
                            const std::vector<float>& guesses) {
  const ItemCodes& codes = *search.index->codes();
  const auto count = static_cast<int64_t>(guesses.size());
  const double product_cost = code_scan_for(context.isa, count).product_cost;
  const CodeView& view = codes.view(count, product_cost);
  if (view.partial == nullptr) return view;
  const CodedQueries queries(context.isa, search, first, count, view);
  const double passing = passing_share(codes, queries, guesses);
  return codes.rotation()->pays(*view.partial, passing, count, product_cost) ? view
                                                                             : codes.full_view();
}

// Some blocks of a catalog, ascending.
class ScanOrder {
 public:
  static ScanOrder all(int64_t blocks) { return {kAll, blocks}; }
  static ScanOrder first(int64_t blocks) {
    return {kFirst, (blocks + kFirstStride - 1) / kFirstStride};
  }
  static ScanOrder others(int64_t blocks) { return {kOthers, blocks - first(blocks).size_}; }

  int64_t size() const { return size_; }
  int64_t operator[](int64_t i) const {
    if (part_ == kAll) return i;
    return part_ == kFirst ? i * kFirstStride : i + i / (kFirstStride - 1) + 1;
  }

 private:
  enum Part { kAll, kFirst, kOthers };
  ScanOrder(Part part, int64_t size) : part_(part), size_(size) {}
  Part part_;
  int64_t size_;
};

// An item that may be among the best.
struct Candidate {
  float upper;  // bound of its score, or the score once known
  uint32_t row;
};

// Those of one query that one thread has found.
struct Candidates {
  Candidate* items = nullptr;  // [capacity]
  int64_t size = 0;
  int64_t checked = 0;  // the first ones, of which none is excluded
  int64_t known = 0;    // of the first ones the score is known
  int64_t limit = 0;    // size at which they are looked through
  int64_t scored = 0;   // so far, those that were dropped included
};

class CodeSearch {
 public:
  // `guesses` are scores that K items of each query probably reach; they are checked.
  CodeSearch(const Context& context, const Search& search, int64_t first, int64_t count,
             const CodeView& view, bool coarse, std::vector<float> guesses, int64_t scored_before)
      : context_(context),
        scored_before_(scored_before),
        coarse_(coarse),
        search_(search),
        index_(*search.index),
        codes_(*search.index->codes()),
        view_(view),
        queries_(context.isa, search, first, count, view_),
        first_(first),
        count_(count),
        k_(search.k()),
        bounds_(static_cast<size_t>(count)),
        guesses_(std::move(guesses)) {
    num_chunks_ =
        count_chunks(context.pool, index_.threads_worth(count), steps_of(codes_.blocks()));
    if (num_chunks_ > 1) pool_ = context.pool;
    growth_ = 2 * k_ + kLeastGrowth;
    capacity_ = k_ + 3 * growth_;
    const int64_t lists = std::min(threads_of(pool_), num_chunks_);
    memory_.reset(new Candidate[static_cast<size_t>(lists * count * capacity_)]);
    candidates_.resize(static_cast<size_t>(lists * count));
    for (int64_t list = 0; list < lists * count; ++list) {
      candidates_[static_cast<size_t>(list)].items = memory_.get() + list * capacity_;
      candidates_[static_cast<size_t>(list)].limit = k_ + growth_;
    }
    for (int64_t list = 0; list < lists; ++list) {
      idle_.push_back(candidates_.data() + list * count);
    }
    for (int64_t q = 0; q < count; ++q) {
      bound(q).store(guesses_[static_cast<size_t>(q)], std::memory_order_relaxed);
    }
  }

  void run() {
    const int64_t blocks = codes_.blocks();
    if (guesses_twice()) {
      scan(ScanOrder::first(blocks));
      for_each(pool_, count_, [this](int64_t q) { guess_again(q); });
      scan(ScanOrder::others(blocks));
    } else {
      scan(ScanOrder::all(blocks));
    }
    for_each(pool_, count_, [this](int64_t q) { answer(q); });
  }

 private:
  bool guesses_twice() const {
    const int64_t steps = steps_of(ScanOrder::first(codes_.blocks()).size());
    const auto threads = static_cast<int64_t>(idle_.size());
    return (count_ >= kLeastQueries || coarse_) && codes_.blocks() >= kLeastBlocks &&
           steps >= kLeastSteps * threads && view_.partial == nullptr;
  }

  static int64_t steps_of(int64_t blocks) { return (blocks + kBlocksPerStep - 1) / kBlocksPerStep; }

  std::atomic<float>& bound(int64_t q) { return bounds_[static_cast<size_t>(q)]; }

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

  void scan(const ScanOrder& order) {
    const int64_t steps = steps_of(order.size());
    const int64_t chunks = std::clamp<int64_t>(steps, 1, num_chunks_);
    const int64_t size = (steps + chunks - 1) / chunks * kBlocksPerStep;
    for_each(pool_, chunks, [&](int64_t chunk) {
      const int64_t begin = chunk * size;
      const int64_t end = std::min(begin + size, order.size());
      if (begin >= end) return;
      Candidates* const found = take();
      (this->*(coarse_ ? &CodeSearch::scan_coarse : &CodeSearch::scan_chunk))(order, begin, end,
                                                                              found);
      give_back(found);
    });
  }

  // A better guess than the first, from candidates in every kFirstStride-th block: all estimates
  // that reach the first are here.
  void guess_again(int64_t q) {
    static thread_local std::vector<float> best;  // of each group of items
    best.clear();
    for (size_t list = static_cast<size_t>(q); list < candidates_.size();
         list += static_cast<size_t>(count_)) {
      Candidates& found = candidates_[list];
      if (found.known > 0) return;  // bounds are scores already
      drop_excluded(q, found);
      int64_t last_group = -1;
      for (const Candidate* item = found.items; item != found.items + found.size; ++item) {
        const float error = queries_.bound(q, item->row / kBlockItems);
        const float likely = item->upper - (1 + kGuessMargin) * error;
        const int64_t group = item->row / kSampleGroupItems;
        if (group == last_group) {
          best.back() = std::max(best.back(), likely);
        } else {
          best.push_back(likely);
        }
        last_group = group;
      }
    }
    const float guess = value_of_rank(best, rank_in_sample(k_, kFirstStride));
    if (guess <= guesses_[static_cast<size_t>(q)]) return;
    guesses_[static_cast<size_t>(q)] = guess;
    raise(bound(q), guess);
  }

  // Blocks [begin, end) of the order.
  void scan_chunk(const ScanOrder& order, int64_t begin, int64_t end, Candidates* found) {
    CodeScans scans(queries_, 0, queries_.tiles());
    const int64_t tile_queries = queries_.tile_queries();
    static thread_local std::vector<int32_t> memory;
    memory.resize(static_cast<size_t>(count_ * kBlocksPerStep));
    int32_t* const thresholds = memory.data();  // [count, blocks of a step]
    CodeHits hits;
    // Without a guess all are candidates at first: short steps until there are bounds.
    int64_t step = 1;
    for (int64_t next = begin; next < end; step = std::min(2 * step, kBlocksPerStep)) {
      const int64_t first = next;
      next = std::min(next + step, end);
      BlockTerms terms;
      for (int64_t i = first; i < next; ++i) queries_.add_block(order[i], terms);
      for (int64_t q = 0; q < count_; ++q) {
        queries_.set_thresholds(q, bound(q).load(std::memory_order_relaxed), terms,
                                thresholds + q * kBlocksPerStep);
      }
      for (int64_t i = first; i < next; ++i) {
        const int64_t block = order[i];
        const uint64_t allowed = allowed_items(search_, block);
        if (allowed == 0) continue;
        const int64_t following = i + 1 < end ? order[i + 1] : -1;
        const int64_t ahead =
            i + 1 + kBlocksAhead < order.size() ? order[i + 1 + kBlocksAhead] : -1;
        const int32_t* const of_block = thresholds + (i - first);
        for (int64_t tile = 0, q = 0; q < count_; ++tile, q += tile_queries) {
          uint32_t any = scans.scan(tile, block, of_block + q * kBlocksPerStep, kBlocksPerStep,
                                    following, ahead, hits);
          for (; any != 0; any &= any - 1) {
            const int hit = __builtin_ctz(any);
            offer(found[q + hit], q + hit, block, hits.items[hit] & allowed, 0, hits.products[hit]);
          }
        }
      }
    }
  }

  // A group of items whose high bits reach a query's threshold.
  struct Group {
    alignas(kLineBytes) int32_t products[kGroupItems];
    int64_t block;
    int64_t q;
    int32_t group;
    int32_t threshold;  // for all bits
  };

  // As scan_chunk(), for few queries.
  void scan_coarse(const ScanOrder& order, int64_t begin, int64_t end, Candidates* found) {
    std::vector<CoarseQuery> coarse;
    for (int64_t q = 0; q < count_; ++q) coarse.emplace_back(queries_, q);
    Group waiting[kGroupsAhead];
    int64_t put = 0;
    int64_t taken = 0;
    const auto finish = [&] {
      Group& next = waiting[taken++ % kGroupsAhead];
      const uint32_t items = coarse[static_cast<size_t>(next.q)].scan_low(
          next.block, next.group, next.threshold, next.products);
      const int64_t first = next.group * kGroupItems;
      const uint64_t wanted = uint64_t{items} << first & allowed_items(search_, next.block);
      if (wanted != 0) offer(found[next.q], next.q, next.block, wanted, first, next.products);
    };
    int32_t thresholds[kMostCoarseQueries][kBlocksPerStep];
    int32_t low_thresholds[kMostCoarseQueries][kBlocksPerStep];
    alignas(kLineBytes) int32_t products[kBlockItems];
    for (int64_t first = begin; first < end; first += kBlocksPerStep) {
      const int64_t next = std::min(first + kBlocksPerStep, end);
      BlockTerms terms;
      for (int64_t i = first; i < next; ++i) queries_.add_block(order[i], terms);
      for (int64_t q = 0; q < count_; ++q) {
        const float wanted = bound(q).load(std::memory_order_relaxed);
        coarse[static_cast<size_t>(q)].set_thresholds(wanted, terms, thresholds[q]);
        queries_.set_thresholds(q, wanted, terms, low_thresholds[q]);
      }
      for (int64_t i = first; i < next; ++i) {
        const int64_t block = order[i];
        const uint64_t allowed = allowed_items(search_, block);
        if (allowed == 0) continue;
        const int64_t ahead = i + kCoarseAhead < order.size() ? order[i + kCoarseAhead] : -1;
        for (int64_t q = 0; q < count_; ++q) {
          const CoarseQuery& query = coarse[static_cast<size_t>(q)];
          uint64_t left = query.scan(block, thresholds[q][i - first], ahead, products) & allowed;
          while (left != 0) {
            const auto group = static_cast<int32_t>(__builtin_ctzll(left) / kGroupItems);
            left &= ~(uint64_t{0xffff} << group * kGroupItems);
            if (put - taken == kGroupsAhead) finish();
            query.fetch_low(block, group);
            Group& to = waiting[put++ % kGroupsAhead];
            std::copy_n(products + group * kGroupItems, kGroupItems, to.products);
            to.block = block;
            to.q = q;
            to.group = group;
            to.threshold = low_thresholds[q][i - first];
          }
        }
      }
    }
    while (taken < put) finish();
  }

  // Some items of a block; `products` begin with that of item `first`.
  void offer(Candidates& found, int64_t q, int64_t block, uint64_t items, int64_t first,
             const int32_t* products) {
    const float slack = queries_.bound(q, block);
    const float unit = queries_.unit(q, block);
    const int32_t offset = queries_[q].offset;
    float wanted = bound(q).load(std::memory_order_relaxed);
    for (; items != 0; items &= items - 1) {
      const int item = __builtin_ctzll(items);
      const float upper = static_cast<float>(products[item - first] - offset) * unit + slack;
      if (upper < wanted) continue;
      const int64_t row = block * kBlockItems + item;
      if (found.size == found.limit) {
        tighten(q, found);
        wanted = bound(q).load(std::memory_order_relaxed);
      }
      found.items[found.size++] = {upper, static_cast<uint32_t>(row)};
    }
  }

  // When candidates are looked through: one by one, in the scan, each would wait for memory.
  void drop_excluded(int64_t q, Candidates& found) const {
    const auto excluded = [&](const Candidate& c) {
      return search_.exclusions->hold(first_ + q, c.row);
    };
    Candidate* const end = found.items + found.size;
    found.size = std::remove_if(found.items + found.checked, end, excluded) - found.items;
    found.checked = found.size;
  }

  // Drops what is excluded, what the scores of the best rule out and, if that is too little, all
  // but the K best.
  void tighten(int64_t q, Candidates& found) {
    drop_excluded(q, found);
    if (found.size < found.limit) return;
    raise(bound(q), score_best(q, found));
    drop(q, found);
    if (found.size > capacity_ - growth_) {
      score(q, found, found.size);
      const auto better = [](const Candidate& a, const Candidate& b) {
        return sort_key(a.upper, a.row) > sort_key(b.upper, b.row);
      };
      std::nth_element(found.items, found.items + k_ - 1, found.items + found.size, better);
      found.size = found.checked = found.known = k_;
      raise(bound(q), found.items[k_ - 1].upper);
    }
    found.limit = found.size + growth_;
  }

  // Scores those that look best, so that the scores of K are known. Returns what K of them reach
  // and not many more; -inf when there are fewer than K.
  float score_best(int64_t q, Candidates& found) const {
    static thread_local std::vector<float> values;
    const auto value_of_kth = [&](int64_t size) {
      values.clear();
      for (int64_t i = 0; i < size; ++i) values.push_back(found.items[i].upper);
      return value_of_rank(values, k_);
    };
    const float least = value_of_kth(found.size);
    int64_t end = found.known;
    for (int64_t i = end; i < found.size && end - found.known < 2 * k_; ++i) {
      if (found.items[i].upper >= least) std::swap(found.items[i], found.items[end++]);
    }
    score(q, found, end);
    return value_of_kth(found.known);
  }

  // Drops what is below the query's bound.
  void drop(int64_t q, Candidates& found) {
    const float wanted = bound(q).load(std::memory_order_relaxed);
    const auto ruled_out = [wanted](const Candidate& c) { return c.upper < wanted; };
    Candidate* const known = found.items + found.known;
    found.known -= std::count_if(found.items, known, ruled_out);
    found.size = std::remove_if(found.items, found.items + found.size, ruled_out) - found.items;
    found.checked = found.size;
  }

  // Replaces the bounds of the candidates up to `end` by their scores.
  void score(int64_t q, Candidates& found, int64_t end) const {
    static thread_local std::vector<uint32_t> rows;
    static thread_local std::vector<float> scores;
    rows.clear();
    for (int64_t i = found.known; i < end; ++i) rows.push_back(found.items[i].row);
    scores.resize(rows.size());
    const auto count = static_cast<int64_t>(rows.size());
    score_rows(index_.unit_vectors(), {rows.data(), count}, search_.queries.row(first_ + q),
               scores.data(), context_.isa);
    for (const float score : scores) found.items[found.known++].upper = score;
    found.scored += count;
  }

  void answer(int64_t q) {
    Candidates found;
    found.scored = scored_before_;
    std::vector<Candidate> all;  // those with known scores first
    std::vector<uint64_t> keys;
    for (size_t list = static_cast<size_t>(q); list < candidates_.size();
         list += static_cast<size_t>(count_)) {
      Candidates& part = candidates_[list];
      drop_excluded(q, part);
      all.insert(all.begin() + found.known, part.items, part.items + part.known);
      all.insert(all.end(), part.items + part.known, part.items + part.size);
      found.known += part.known;
      found.scored += part.scored;
    }
    found.items = all.data();
    found.size = static_cast<int64_t>(all.size());
    const float guess = guesses_[static_cast<size_t>(q)];
    float reached = score_best(q, found);
    if (reached < guess) {
      score(q, found, found.size);
      reached = score_best(q, found);
    }
    if (reached < guess) {
      // The guess was too high, or there are fewer than K: search again without one.
      CodeSearch(context_, search_, first_ + q, 1, codes_.full_view(), false, {kLowest},
                 found.scored)
          .run();
      return;
    }
    raise(bound(q), reached);
    drop(q, found);
    score(q, found, found.size);
    keys.reserve(static_cast<size_t>(found.size));
    for (int64_t i = 0; i < found.size; ++i) {
      keys.push_back(sort_key(found.items[i].upper, found.items[i].row));
    }
    const float largest = coarse_ ? codes_.largest_coarse_error() : view_.largest_error;
    write_answer(keys, search_, first_ + q,
                 {found.size, found.scored, queries_[q].slack + largest * queries_[q].error_share});
  }

  const Context context_;
  int64_t scored_before_;  // of the one query, in a search that did not answer it
  bool coarse_;
  const Search& search_;
  const ItemIndex& index_;
  const ItemCodes& codes_;
  const CodeView& view_;
  CodedQueries queries_;
  ThreadPool* pool_ = nullptr;  // null also for what is not worth several threads
  int64_t first_;               // query of the call
  int64_t count_;
  int64_t k_;
  int64_t num_chunks_;
  int64_t growth_;                       // of Candidates between looking them through
  int64_t capacity_;                     // of each Candidates
  std::unique_ptr<Candidate[]> memory_;  // [threads, queries, capacity]
  std::vector<Candidates> candidates_;   // [threads, queries]
  std::mutex mutex_;
  std::vector<Candidates*> idle_;           // [queries] each; guarded by mutex_
  std::vector<std::atomic<float>> bounds_;  // what an item must reach to be wanted
  std::vector<float> guesses_;              // the last that were not scores
};

}  // namespace

void search_codes(const Context& context, const Search& search) {
  for (int64_t first = 0; first < search.queries.count; first += kQueriesPerPass) {
    const int64_t count = std::min(kQueriesPerPass, search.queries.count - first);
    const bool alone = search.index->threads_worth(count) == 1;
    SampleBounds sample =
        sample_bounds(context, search, first, count, alone ? nullptr : context.pool);
    const CodeView& view = choose_view(context, search, first, sample.guesses);
    const bool coarse = view.partial == nullptr && sample.coarse_share < kMostCoarse;
    CodeSearch(context, search, first, count, view, coarse, std::move(sample.guesses), 0).run();
  }
}

}  // namespace recengine
