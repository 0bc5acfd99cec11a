#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/thread_pool.h"
#include "ops/bitmap.h"
#include "ops/cosine_topk_kernel.h"
#include "ops/exclusions.h"
#include "recengine/context.h"
#include "recengine/item_index.h"
#include "recengine/ops/cosine_topk.h"
#include "recengine/tensor.h"

namespace recengine {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Of fewer items for each that is wanted, most would have to be scored twice.
constexpr int64_t kItemsPerWanted = 32;
inline bool worth_codes(int64_t rows, int64_t k) { return k <= rows / kItemsPerWanted; }

// Items that all queries of a pass score from L1, in scans of vectors.
constexpr int64_t kScanBlockBytes = 32 << 10;

// Products of a query and an item, by dimension, that are worth a thread's waking.
constexpr int64_t kScanProductsPerChunk = 1 << 20;  // of vectors
constexpr int64_t kCodeProductsPerChunk = 1 << 22;  // of codes

// Unit queries as the kernels read them: [count, padded_dim], zeros behind the dimensions.
struct UnitQueries {
  const float* data = nullptr;
  int64_t count = 0;
  int64_t padded_dim = 0;  // a multiple of kScoreLanes
  const float* row(int64_t q) const { return data + q * padded_dim; }
};

// A checked call of cosine_topk; borrowed.
struct Search {
  const ItemIndex* index = nullptr;
  UnitQueries queries;
  const Exclusions* exclusions = nullptr;
  const uint64_t* allow_bitmap = nullptr;
  Matrix<int64_t> out_rows;                 // [queries, k]
  Matrix<float> out_scores;                 // [queries, k]
  TopKCertificate* certificates = nullptr;  // [queries], or null

  int64_t k() const { return out_rows.cols; }
};

// A call of cosine_topk on items [rows, dim] that passed the checks; borrows its arguments.
class CheckedCall {
 public:
  CheckedCall(ThreadPool* pool, int64_t rows, int64_t dim, const TopKQuery& query,
              Matrix<int64_t> out_rows, Matrix<float> out_scores, TopKCertificate* certificates);

  bool asks_nothing() const { return out_rows_.rows == 0 || out_rows_.cols == 0; }

  // The call on an index of some of the rows that it was checked for. Exclusions and bitmap name
  // the index's rows.
  Search over(const ItemIndex& index, const uint64_t* allow_bitmap) const;

 private:
  Exclusions exclusions_;
  int64_t padded_dim_;
  std::vector<float> units_;  // [batch, padded_dim]
  Matrix<int64_t> out_rows_;
  Matrix<float> out_scores_;
  TopKCertificate* certificates_;
};

// Rows of a block of a scan: whole words of a bitmap.
inline int64_t scan_block_rows(int64_t dim) {
  const int64_t words = kScanBlockBytes / (dim * int64_t{sizeof(float)}) / kBitmapWord;
  return std::clamp<int64_t>(words * kBitmapWord, kBitmapWord, kMaxBlockItems);
}

// Bits of the items of a block of kBitmapWord that are there and that the bitmap allows.
inline uint64_t allowed_items(const Search& search, int64_t block) {
  const int64_t left = search.index->rows() - block * kBitmapWord;
  const uint64_t there = left >= kBitmapWord ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
  return search.allow_bitmap == nullptr ? there : there & search.allow_bitmap[block];
}

// What a sample of the items' codes tells of some queries.
struct SampleBounds {
  // A score for each query that K items probably reach and few others do; -inf for a catalog of
  // which a sample is not worth it.
  std::vector<float> guesses;
  // About the share of groups of items that a coarse scan leaves, for all queries together.
  double coarse_share = std::numeric_limits<double>::infinity();
};

SampleBounds sample_bounds(const Context& context, const Search& search, int64_t first,
                           int64_t count, ThreadPool* pool);

CosineScan scan_for(Isa isa);

// A bound that only rises, shared by the threads that scan for one query.
inline void raise(std::atomic<float>& bound, float value) {
  float current = bound.load(std::memory_order_relaxed);
  while (value > current &&
         !bound.compare_exchange_weak(current, value, std::memory_order_relaxed)) {
  }
}

// How many runs of blocks a scan is cut into for the pool, with `worth` of them worth a thread's
// waking. Eight a thread: one that loses its core for a while does not hold up the others.
inline int64_t count_chunks(const ThreadPool* pool, int64_t worth, int64_t blocks) {
  const int64_t threads = threads_of(pool);
  const int64_t most = threads == 1 ? 1 : 8 * threads;
  return std::clamp<int64_t>(std::min(worth, most), 1, std::max<int64_t>(blocks, 1));
}

// How many items were scored to answer a query, and how far the estimates may be off that others
// were left out by: see TopKCertificate.
struct Effort {
  int64_t survivors;
  int64_t scored;
  float bound;
};

// Writes the best of `keys` as the answer to a query; reorders them.
void write_answer(std::vector<uint64_t>& keys, const Search& search, int64_t query,
                  const Effort& effort);

// Searches in the fastest of the ways below; all give the same answer.
void search(const Context& context, const Search& search);

// Searches the items that the bitmap allows by themselves; false where all are searched faster.
bool search_few(const Context& context, const Search& search);
void search_all(const Context& context, const Search& search);

void search_codes(const Context& context, const Search& search);  // needs index->codes()
// Scores every item, or these alone, ascending, which are all that the bitmap allows.
void search_vectors(const Context& context, const Search& search,
                    const std::vector<uint32_t>* rows = nullptr);

}  // namespace recengine
