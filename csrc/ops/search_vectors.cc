#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "cpu/inline.h"
#include "cpu/isa.h"
#include "ops/best_keys.h"
#include "ops/item_rows.h"
#include "ops/rank.h"
#include "ops/search.h"
#include "ops/sort_key.h"

namespace recengine {
namespace {

constexpr int64_t kRoom = 256;  // for more than K items, before all are looked through

// The best items of one query among the rows of one chunk, and some more. Rows come in ascending
// order, so one that ties with the worst of K kept ones cannot replace it.
class BestRows {
 public:
  void reset(float* scores, uint32_t* rows, int64_t capacity, int64_t k) {
    scores_ = scores;
    rows_ = rows;
    capacity_ = capacity;
    k_ = k;
    size_ = 0;
    threshold_ = kLowest;
  }

  // Only items above it can still be among the best K.
  float threshold() const { return threshold_; }

  // Rows must be offered in ascending order.
  void offer(int64_t row, float score) {
    if (size_ == capacity_) keep_best();
    scores_[size_] = score;
    rows_[size_] = static_cast<uint32_t>(row);
    size_ += score > threshold_ ? 1 : 0;
  }

  // Drops most of those that are not among the best K.
  void keep_best() {
    if (size_ <= k_) return;
    threshold_ = value_of_rank({scores_, size_}, k_);
    int64_t kept = 0;
    for (int64_t i = 0; i < size_; ++i) {
      scores_[kept] = scores_[i];
      rows_[kept] = rows_[i];
      kept += scores_[i] >= threshold_ ? 1 : 0;
    }
    size_ = kept;
    if (size_ > k_ + k_ / 4 + kRoom / 2) keep_exactly_best();
  }

  void append_to(std::vector<uint64_t>& keys) const {
    for (int64_t i = 0; i < size_; ++i) keys.push_back(sort_key(scores_[i], rows_[i]));
  }

 private:
  // Where many tie with the worst or nearly do.
  void keep_exactly_best() {
    std::vector<uint64_t> keys;
    append_to(keys);
    sort_best(keys, k_);
    threshold_ = key_score(keys.back());
    std::sort(keys.begin(), keys.end(),
              [](uint64_t a, uint64_t b) { return key_position(a) < key_position(b); });
    size_ = 0;
    for (const uint64_t key : keys) {
      scores_[size_] = key_score(key);
      rows_[size_++] = key_position(key);
    }
  }

  float* scores_ = nullptr;   // [capacity]
  uint32_t* rows_ = nullptr;  // [capacity]
  int64_t capacity_ = 0;
  int64_t size_ = 0;
  int64_t k_ = 0;
  float threshold_ = kLowest;
};

constexpr int64_t kQueriesPerPass = 72;   // bounds its memory
constexpr int64_t kQueriesPerGather = 8;  // their scores take as long as fetching a row
constexpr int64_t kRowsPerKept = 16;      // of a chunk, or it keeps most of what it scores

// One pass of at most kQueriesPerPass queries over all items, or over these rows alone.
class VectorSearch {
 public:
  VectorSearch(const Context& context, const ItemIndex& index, const std::vector<uint32_t>* rows,
               int64_t num_queries, int64_t k)
      : index_(index), isa_(context.isa), scan_(scan_for(context.isa)), k_(k) {
    if (rows != nullptr) rows_ = *rows;
    is_all_ = rows == nullptr;
    num_rows_ = is_all_ ? index.rows() : rows_.size;
    block_rows_ = is_lone(num_queries) ? kMaxBlockItems : scan_block_rows(index.dim());
    const int64_t blocks = (num_rows_ + block_rows_ - 1) / block_rows_;
    const int64_t reads = is_all_ ? 0 : kQueriesPerGather;
    const int64_t worth = num_rows_ * index.dim() * (num_queries + reads) / kScanProductsPerChunk;
    num_chunks_ = count_chunks(context.pool, worth, blocks);
    const int64_t most = std::max(threads_of(context.pool), num_rows_ / (kRowsPerKept * k));
    num_chunks_ = std::min(num_chunks_, most);
    if (num_chunks_ > 1) pool_ = context.pool;
    chunk_rows_ = (blocks + num_chunks_ - 1) / num_chunks_ * block_rows_;
    capacity_ = std::min(std::max(2 * k, k + kRoom), chunk_rows_) + 1;
    const auto kept = static_cast<size_t>(num_chunks_ * num_queries * capacity_);
    scores_.reset(new float[kept]);
    kept_rows_.reset(new uint32_t[kept]);
    best_.resize(static_cast<size_t>(num_chunks_ * num_queries));
    bounds_ = std::vector<std::atomic<float>>(static_cast<size_t>(num_queries));
  }

  // Answers queries [first, first + count).
  void run(const Search& search, int64_t first, int64_t count) {
    for (std::atomic<float>& bound : bounds_) bound.store(kLowest, std::memory_order_relaxed);
    for_each(pool_, num_chunks_, [&](int64_t chunk) {
      open(chunk, count);
      scan_chunk(chunk, search, first, count);
    });
    for_each(pool_, count, [&](int64_t q) { collect(q, count, search, first + q); });
  }

 private:
  void open(int64_t chunk, int64_t count) {
    for (int64_t q = 0; q < count; ++q) {
      const int64_t slot = chunk * count + q;
      best_[static_cast<size_t>(slot)].reset(scores_.get() + slot * capacity_,
                                             kept_rows_.get() + slot * capacity_, capacity_, k_);
    }
  }

  void scan_chunk(int64_t chunk, const Search& search, int64_t first, int64_t count) {
    const int64_t end = std::min((chunk + 1) * chunk_rows_, num_rows_);
    if (is_lone(count)) {
      BestRows& best = best_[static_cast<size_t>(chunk)];
      for (int64_t position = chunk * chunk_rows_; position < end; position += block_rows_) {
        score_block(search, first, position, std::min(block_rows_, end - position), best);
      }
      best.keep_best();
      return;
    }
    for (int64_t position = chunk * chunk_rows_; position < end; position += block_rows_) {
      const int64_t rows = std::min(block_rows_, end - position);
      if (is_all_ && none_allowed(search.allow_bitmap, position, rows)) continue;
      const Matrix<const float> items = load_block(position, rows, end);
      for (int64_t q = 0; q < count; ++q) {
        scan_block(search, first + q, position, {items.data, rows, items.cols},
                   bounds_[static_cast<size_t>(q)], best_[static_cast<size_t>(chunk * count + q)]);
      }
    }
    for (int64_t q = 0; q < count; ++q) best_[static_cast<size_t>(chunk * count + q)].keep_best();
  }

  // Whether rows are scored where they lie: a copy pays for several queries.
  bool is_lone(int64_t queries) const { return !is_all_ && queries == 1; }

  void score_block(const Search& search, int64_t query, int64_t position, int64_t count,
                   BestRows& best) const {
    float scores[kMaxBlockItems];
    const Span<const uint32_t> rows(rows_.data + position, count);
    score_rows(index_.unit_vectors(), rows, search.queries.row(query), scores, isa_);
    for (int64_t i = 0; i < count; ++i) {
      if (scores[i] > best.threshold() && !search.exclusions->hold(query, rows[i])) {
        best.offer(rows[i], scores[i]);
      }
    }
  }

  // What follows the block, up to `end`, is prefetched.
  Matrix<const float> load_block(int64_t position, int64_t rows, int64_t end) const {
    const ItemVectors& vectors = index_.unit_vectors();
    if (!is_all_) {
      return load_rows(vectors, {rows_.data + position, end - position}, rows, isa_);
    }
    prefetch(position + rows, std::min(block_rows_, end - position - rows));
    return load_rows(vectors, position, rows, isa_);
  }

  // Hardware prefetch stops at every 4 KiB page; this does not. What is converted is prefetched
  // there.
  RECENGINE_INLINE void prefetch(int64_t row, int64_t rows) const {
    if (index_.unit_vectors().is_half()) return;
    const float* data = index_.unit_vectors().floats.row(row);
    constexpr int64_t kLineFloats = 16;
    for (int64_t i = 0; i < rows * index_.dim(); i += kLineFloats) {
      __builtin_prefetch(data + i, 0, 2);
    }
  }

  static bool none_allowed(const uint64_t* bitmap, int64_t row, int64_t rows) {
    if (bitmap == nullptr) return false;
    uint64_t any = 0;
    for (int64_t word = row / kBitmapWord; word * kBitmapWord < row + rows; ++word) {
      any |= bitmap[word];
    }
    return any == 0;
  }

  void scan_block(const Search& search, int64_t query, int64_t position, const ItemBlock& block,
                  std::atomic<float>& bound, BestRows& best) const {
    int32_t positions[kMaxBlockItems];
    float scores[kMaxBlockItems];
    const float before = best.threshold();
    const float threshold = std::max(before, bound.load(std::memory_order_relaxed));
    const int64_t hits = scan_(block, search.queries.row(query), threshold, positions, scores);
    for (int64_t i = 0; i < hits; ++i) {
      const int64_t at = position + positions[i];
      const int64_t row = is_all_ ? at : int64_t{rows_[at]};
      if (is_all_ && !is_set(search.allow_bitmap, row)) continue;
      if (search.exclusions->hold(query, row)) continue;
      best.offer(row, scores[i]);
    }
    // Another chunk's item that ties may have the lower row: the shared bound stays just below.
    if (best.threshold() > before) raise(bound, std::nextafter(best.threshold(), kLowest));
  }

  void collect(int64_t q, int64_t count, const Search& search, int64_t query) const {
    std::vector<uint64_t> keys;
    for (int64_t chunk = 0; chunk < num_chunks_; ++chunk) {
      best_[static_cast<size_t>(chunk * count + q)].append_to(keys);
    }
    write_answer(keys, search, query, {num_rows_, num_rows_, 0});
  }

  const ItemIndex& index_;
  bool is_all_;
  Span<const uint32_t> rows_;  // ascending, if not all
  int64_t num_rows_;
  Isa isa_;
  CosineScan scan_;
  ThreadPool* pool_ = nullptr;  // null also for what is not worth several threads
  int64_t k_;
  int64_t block_rows_;
  int64_t num_chunks_;
  int64_t chunk_rows_;
  int64_t capacity_;                        // of each BestRows
  std::unique_ptr<float[]> scores_;         // [chunks, queries, capacity]
  std::unique_ptr<uint32_t[]> kept_rows_;   // the same
  std::vector<BestRows> best_;              // [chunks, queries]
  std::vector<std::atomic<float>> bounds_;  // [queries]
};

}  // namespace

CosineScan scan_for(Isa isa) {
  return pick_kernel(isa, cosine_scan_portable, cosine_scan_avx2, cosine_scan_avx512,
                     cosine_scan_avx512, cosine_scan_avx512);
}

void search_vectors(const Context& context, const Search& search,
                    const std::vector<uint32_t>* rows) {
  const int64_t batch = search.queries.count;
  VectorSearch scan(context, *search.index, rows, std::min(batch, kQueriesPerPass), search.k());
  for (int64_t first = 0; first < batch; first += kQueriesPerPass) {
    scan.run(search, first, std::min(kQueriesPerPass, batch - first));
  }
}

}  // namespace recengine
