#include "recengine/ops/cosine_topk.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cpu/thread_pool.h"
#include "ops/cosine_topk_kernel.h"
#include "ops/sort_key.h"
#include "recengine/error.h"
#include "recengine/vocabulary.h"

namespace recengine {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr int64_t kQueriesPerPass = 64;         // bounds the memory of one pass
constexpr int64_t kBlockBytes = 32 << 10;       // items that all queries of a pass score from L1
constexpr int64_t kBitmapWord = 64;             // blocks and chunks begin at whole words
constexpr int64_t kProductsPerChunk = 1 << 20;  // below, waking a thread costs more than it saves

CosineScan scan_for(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return cosine_scan_portable;
    case Isa::kAvx2:
      return cosine_scan_avx2;
    case Isa::kAvx512:
    case Isa::kAvx512Vnni:
      return cosine_scan_avx512;
  }
  return cosine_scan_portable;
}

[[noreturn]] void fail(const std::string& what) { throw InputError("[cosine_topk] " + what); }

void expect(const char* what, int64_t expected, int64_t found) {
  if (expected == found) return;
  fail(std::string(what) + " " + std::to_string(expected) + ", found " + std::to_string(found));
}

void check_shapes(const ItemIndex& index, const TopKQuery& query, Matrix<int64_t> out_rows,
                  Matrix<float> out_scores) {
  expect("queries: expected dim", index.dim(), query.queries.cols);
  expect("out_rows: expected batch", query.queries.rows, out_rows.rows);
  expect("out_scores: expected batch", out_rows.rows, out_scores.rows);
  expect("out_scores: expected k", out_rows.cols, out_scores.cols);
}

// What each query must not be answered with: rows [begin[q], begin[q + 1]), ascending.
struct Exclusions {
  std::vector<int64_t> rows;
  std::vector<int64_t> begin;
};

Exclusions sort_exclusions(const ItemIndex& index, const TopKQuery& query) {
  const int64_t batch = query.queries.rows;
  const int64_t total = query.exclude_rows.size;
  Exclusions sorted;
  sorted.begin.assign(static_cast<size_t>(batch) + 1, 0);
  if (query.exclude_lengths.empty()) {
    if (total > 0) expect("exclude_lengths: expected batch", batch, 0);
    return sorted;
  }
  expect("exclude_lengths: expected batch", batch, query.exclude_lengths.size);
  sorted.rows.assign(query.exclude_rows.begin(), query.exclude_rows.end());
  int64_t position = 0;
  for (int64_t q = 0; q < batch; ++q) {
    const int64_t length = query.exclude_lengths[q];
    if (length < 0 || length > total - position) {
      fail("exclude_lengths[" + std::to_string(q) + "]: expected 0 to " +
           std::to_string(total - position) + ", the rows left; found " + std::to_string(length));
    }
    for (int64_t i = position; i < position + length; ++i) {
      const int64_t row = query.exclude_rows[i];
      if (row >= 0 && row < index.rows()) continue;
      fail("exclude_rows[" + std::to_string(i) + "]: expected 0 to " +
           std::to_string(index.rows() - 1) + ", found " + std::to_string(row));
    }
    std::sort(sorted.rows.begin() + position, sorted.rows.begin() + position + length);
    position += length;
    sorted.begin[static_cast<size_t>(q) + 1] = position;
  }
  expect("exclude_lengths: expected to sum to", total, position);
  return sorted;
}

// Unit queries [batch, padded_dim], zeros behind dim.
std::vector<float> normalise_queries(Matrix<const float> queries, int64_t padded_dim) {
  std::vector<float> units(static_cast<size_t>(queries.rows * padded_dim), 0.0f);
  for (int64_t q = 0; q < queries.rows; ++q) {
    if (!normalise(queries.row(q), queries.cols, units.data() + q * padded_dim)) {
      fail("queries: row " + std::to_string(q) + ": expected finite values");
    }
  }
  return units;
}

// The best items of one query among the rows of one chunk, as sort keys. Rows come in ascending
// order, so one that ties with the worst of K kept ones cannot replace it.
class BestRows {
 public:
  void reset(uint64_t* keys, int64_t capacity, int64_t k, const int64_t* excluded,
             const int64_t* excluded_end) {
    keys_ = keys;
    capacity_ = capacity;
    k_ = k;
    size_ = 0;
    threshold_ = kLowest;
    excluded_ = excluded;
    excluded_end_ = excluded_end;
  }

  const uint64_t* begin() const { return keys_; }
  const uint64_t* end() const { return keys_ + size_; }

  // Only items above it can still be among the best K.
  float threshold() const { return threshold_; }

  // Rows must be offered in ascending order.
  void offer(int64_t row, float score) {
    while (excluded_ != excluded_end_ && *excluded_ < row) ++excluded_;
    if (excluded_ != excluded_end_ && *excluded_ == row) return;
    if (size_ == capacity_) keep_best();
    if (score > threshold_) keys_[size_++] = sort_key(score, static_cast<uint32_t>(row));
  }

  void keep_best() {
    if (size_ <= k_) return;
    std::nth_element(keys_, keys_ + k_ - 1, keys_ + size_, std::greater<>());
    size_ = k_;
    threshold_ = key_score(keys_[k_ - 1]);
  }

 private:
  uint64_t* keys_ = nullptr;  // [capacity]
  int64_t capacity_ = 0;
  int64_t size_ = 0;
  int64_t k_ = 0;
  float threshold_ = kLowest;
  const int64_t* excluded_ = nullptr;  // those not below the last row offered
  const int64_t* excluded_end_ = nullptr;
};

// A bound that only rises, shared by the threads that scan for one query.
void raise(std::atomic<float>& bound, float value) {
  float current = bound.load(std::memory_order_relaxed);
  while (value > current &&
         !bound.compare_exchange_weak(current, value, std::memory_order_relaxed)) {
  }
}

// One pass of at most kQueriesPerPass queries over all items.
class Search {
 public:
  Search(const Context& context, const ItemIndex& index, int64_t num_queries, int64_t k)
      : index_(index), scan_(scan_for(context.isa)), pool_(context.pool), k_(k) {
    const int64_t words = kBlockBytes / (index.dim() * int64_t{sizeof(float)}) / kBitmapWord;
    block_rows_ = std::clamp<int64_t>(words * kBitmapWord, kBitmapWord, kMaxBlockItems);
    const int64_t blocks = (index.rows() + block_rows_ - 1) / block_rows_;
    const int64_t threads = pool_ == nullptr ? 1 : pool_->num_workers() + 1;
    const int64_t worth = index.rows() * index.dim() / kProductsPerChunk * num_queries;
    // Four chunks a thread: a thread that loses its core for a while does not hold up the others.
    num_chunks_ = threads == 1 ? 1 : std::clamp<int64_t>(worth, 1, 4 * threads);
    num_chunks_ = std::clamp<int64_t>(blocks, 1, num_chunks_);
    chunk_rows_ = (blocks + num_chunks_ - 1) / num_chunks_ * block_rows_;
    capacity_ = std::min(std::max(2 * k, k + 256), chunk_rows_);
    keys_.reset(new uint64_t[static_cast<size_t>(num_chunks_ * num_queries * capacity_)]);
    best_.resize(static_cast<size_t>(num_chunks_ * num_queries));
    bounds_ = std::vector<std::atomic<float>>(static_cast<size_t>(num_queries));
  }

  // Answers queries [first, first + count) of the call; `units` are those, normalised and padded.
  void run(const float* units, int64_t padded_dim, int64_t first, int64_t count,
           const Exclusions& exclusions, const uint64_t* allow_bitmap, int64_t* out_rows,
           float* out_scores) {
    for (std::atomic<float>& bound : bounds_) bound.store(kLowest, std::memory_order_relaxed);
    for_each(num_chunks_, [&](int64_t chunk) {
      open(chunk, first, count, exclusions);
      scan_chunk(chunk, units, padded_dim, count, allow_bitmap);
    });
    for_each(count,
             [&](int64_t q) { write_answer(q, count, out_rows + q * k_, out_scores + q * k_); });
  }

 private:
  template <typename Body>
  void for_each(int64_t count, const Body& body) {
    if (pool_ != nullptr && num_chunks_ > 1) {
      pool_->parallel_for(count, body);
    } else {
      for (int64_t i = 0; i < count; ++i) body(i);
    }
  }

  void open(int64_t chunk, int64_t first, int64_t count, const Exclusions& exclusions) {
    for (int64_t q = 0; q < count; ++q) {
      const int64_t* rows = exclusions.rows.data();
      const int64_t* end = rows + exclusions.begin[static_cast<size_t>(first + q + 1)];
      const int64_t* begin = std::lower_bound(
          rows + exclusions.begin[static_cast<size_t>(first + q)], end, chunk * chunk_rows_);
      const int64_t slot = chunk * count + q;
      best_[static_cast<size_t>(slot)].reset(keys_.get() + slot * capacity_, capacity_, k_, begin,
                                             end);
    }
  }

  void scan_chunk(int64_t chunk, const float* units, int64_t padded_dim, int64_t count,
                  const uint64_t* allow_bitmap) {
    const int64_t end = std::min((chunk + 1) * chunk_rows_, index_.rows());
    for (int64_t row = chunk * chunk_rows_; row < end; row += block_rows_) {
      const int64_t rows = std::min(block_rows_, end - row);
      if (allow_bitmap != nullptr && none_allowed(allow_bitmap, row, rows)) continue;
      prefetch(row + rows, std::min(block_rows_, end - row - rows));
      for (int64_t q = 0; q < count; ++q) {
        scan_block(row, rows, units + q * padded_dim, allow_bitmap, bounds_[static_cast<size_t>(q)],
                   best_[static_cast<size_t>(chunk * count + q)]);
      }
    }
    for (int64_t q = 0; q < count; ++q) best_[static_cast<size_t>(chunk * count + q)].keep_best();
  }

  // Hardware prefetch stops at every 4 KiB page; this does not.
  void prefetch(int64_t row, int64_t rows) const {
    const float* data = index_.unit_vectors().row(row);
    constexpr int64_t kLineFloats = 16;
    for (int64_t i = 0; i < rows * index_.dim(); i += kLineFloats) {
      __builtin_prefetch(data + i, 0, 2);
    }
  }

  static bool none_allowed(const uint64_t* bitmap, int64_t row, int64_t rows) {
    uint64_t any = 0;
    for (int64_t word = row / kBitmapWord; word * kBitmapWord < row + rows; ++word) {
      any |= bitmap[word];
    }
    return any == 0;
  }

  void scan_block(int64_t first_row, int64_t rows, const float* unit, const uint64_t* allow_bitmap,
                  std::atomic<float>& bound, BestRows& best) const {
    int32_t positions[kMaxBlockItems];
    float scores[kMaxBlockItems];
    const float before = best.threshold();
    const float threshold = std::max(before, bound.load(std::memory_order_relaxed));
    const ItemBlock block{index_.unit_vectors().row(first_row), rows, index_.dim()};
    const int64_t hits = scan_(block, unit, threshold, positions, scores);
    for (int64_t i = 0; i < hits; ++i) {
      const int64_t row = first_row + positions[i];
      const bool allowed =
          allow_bitmap == nullptr || (allow_bitmap[row / kBitmapWord] >> (row % kBitmapWord) & 1);
      if (allowed) best.offer(row, scores[i]);
    }
    // Another chunk's item that ties may have the lower row: the shared bound stays just below.
    if (best.threshold() > before) raise(bound, std::nextafter(best.threshold(), kLowest));
  }

  void write_answer(int64_t q, int64_t count, int64_t* out_rows, float* out_scores) const {
    std::vector<uint64_t> keys;
    for (int64_t chunk = 0; chunk < num_chunks_; ++chunk) {
      const BestRows& best = best_[static_cast<size_t>(chunk * count + q)];
      keys.insert(keys.end(), best.begin(), best.end());
    }
    const int64_t found = std::min(k_, static_cast<int64_t>(keys.size()));
    if (found < static_cast<int64_t>(keys.size())) {
      std::nth_element(keys.begin(), keys.begin() + found, keys.end(), std::greater<>());
    }
    std::sort(keys.begin(), keys.begin() + found, std::greater<>());
    for (int64_t i = 0; i < k_; ++i) {
      out_rows[i] = i < found ? int64_t{key_position(keys[static_cast<size_t>(i)])} : kNoItem;
      out_scores[i] = i < found ? key_score(keys[static_cast<size_t>(i)]) : kLowest;
    }
  }

  const ItemIndex& index_;
  CosineScan scan_;
  ThreadPool* pool_;
  int64_t k_;
  int64_t block_rows_;
  int64_t num_chunks_;
  int64_t chunk_rows_;
  int64_t capacity_;                        // of each BestRows
  std::unique_ptr<uint64_t[]> keys_;        // [chunks, queries, capacity]
  std::vector<BestRows> best_;              // [chunks, queries]
  std::vector<std::atomic<float>> bounds_;  // [queries]
};

}  // namespace

void cosine_topk(const Context& context, const ItemIndex& index, const TopKQuery& query,
                 Matrix<int64_t> out_rows, Matrix<float> out_scores) {
  check_shapes(index, query, out_rows, out_scores);
  const int64_t batch = query.queries.rows;
  const int64_t k = out_rows.cols;
  const Exclusions exclusions = sort_exclusions(index, query);
  const int64_t padded_dim = (index.dim() + kScoreLanes - 1) / kScoreLanes * kScoreLanes;
  const std::vector<float> units = normalise_queries(query.queries, padded_dim);
  if (batch == 0 || k == 0) return;

  Search search(context, index, std::min(batch, kQueriesPerPass), k);
  for (int64_t first = 0; first < batch; first += kQueriesPerPass) {
    const int64_t count = std::min(kQueriesPerPass, batch - first);
    search.run(units.data() + first * padded_dim, padded_dim, first, count, exclusions,
               query.allow_bitmap, out_rows.row(first), out_scores.row(first));
  }
}

}  // namespace recengine
