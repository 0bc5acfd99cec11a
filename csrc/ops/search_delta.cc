#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "ops/delta.h"
#include "ops/search.h"
#include "ops/sort_key.h"
#include "recengine/vocabulary.h"

namespace recengine {
namespace {

constexpr int64_t kKeysBeyond = 256;  // kept besides 2 K, so that few are looked through often

// The best vectors of one chunk for one query. Rows come in any order, so one that ties with the
// worst of K may still replace it: the threshold stays just below.
struct BestKeys {
  std::vector<uint64_t> keys;
  float threshold;  // only what is above it is wanted

  void offer(uint64_t key, int64_t k) {
    if (static_cast<int64_t>(keys.size()) == 2 * k + kKeysBeyond) keep_best(k);
    keys.push_back(key);
  }

  void keep_best(int64_t k) {
    std::nth_element(keys.begin(), keys.begin() + k - 1, keys.end(), std::greater<>());
    keys.resize(static_cast<size_t>(k));
    threshold = std::nextafter(key_score(keys.back()), kLowest);
  }
};

class DeltaSearch {
 public:
  DeltaSearch(const Context& context, const Search& search, const Delta& delta)
      : search_(search),
        delta_(delta),
        scan_(scan_for(context.isa)),
        batch_(search.queries.count),
        block_rows_(scan_block_rows(delta.dim())) {
    const int64_t blocks = (delta.count() + block_rows_ - 1) / block_rows_;
    const int64_t worth = delta.count() * delta.dim() * batch_ / kScanProductsPerChunk;
    num_chunks_ = count_chunks(context.pool, worth, blocks);
    if (num_chunks_ > 1) pool_ = context.pool;
    chunk_rows_ = (blocks + num_chunks_ - 1) / num_chunks_ * block_rows_;
    best_.resize(static_cast<size_t>(num_chunks_ * batch_));
  }

  void run() {
    for_each(pool_, num_chunks_, [this](int64_t chunk) { scan_chunk(chunk); });
    for_each(pool_, batch_, [this](int64_t query) { answer(query); });
  }

 private:
  BestKeys& best(int64_t chunk, int64_t query) {
    return best_[static_cast<size_t>(chunk * batch_ + query)];
  }

  void scan_chunk(int64_t chunk) {
    for (int64_t q = 0; q < batch_; ++q) {
      const float worst = search_.out_scores.row(q)[search_.k() - 1];
      best(chunk, q).threshold = std::nextafter(worst, kLowest);
    }
    const int64_t end = std::min((chunk + 1) * chunk_rows_, delta_.count());
    for (int64_t first = chunk * chunk_rows_; first < end; first += block_rows_) {
      const int64_t block_end = std::min(first + block_rows_, end);
      if (none_wanted(first, block_end)) continue;
      for (int64_t q = 0; q < batch_; ++q) scan_block(first, block_end, q, best(chunk, q));
    }
  }

  bool is_wanted(int64_t position) const {
    return delta_.is_live(position) && is_set(search_.allow_bitmap, delta_.row(position));
  }

  bool none_wanted(int64_t first, int64_t end) const {
    while (first < end && !is_wanted(first)) ++first;
    return first == end;
  }

  void scan_block(int64_t first, int64_t end, int64_t query, BestKeys& best) const {
    int32_t positions[kMaxBlockItems];
    float scores[kMaxBlockItems];
    const ItemBlock block = {delta_.unit(first), end - first, delta_.dim()};
    const int64_t hits =
        scan_(block, search_.queries.row(query), best.threshold, positions, scores);
    for (int64_t i = 0; i < hits; ++i) {
      const int64_t position = first + positions[i];
      const int64_t row = delta_.row(position);
      if (!is_wanted(position) || search_.exclusions->hold(query, row)) continue;
      best.offer(sort_key(scores[i], static_cast<uint32_t>(row)), search_.k());
    }
  }

  void answer(int64_t query) {
    std::vector<uint64_t> keys;
    for (int64_t chunk = 0; chunk < num_chunks_; ++chunk) {
      const std::vector<uint64_t>& found = best(chunk, query).keys;
      keys.insert(keys.end(), found.begin(), found.end());
    }
    const int64_t* rows = search_.out_rows.row(query);
    for (int64_t i = 0; i < search_.k() && rows[i] != kNoItem; ++i) {
      keys.push_back(sort_key(search_.out_scores.row(query)[i], static_cast<uint32_t>(rows[i])));
    }
    TopKCertificate before = {};
    if (search_.certificates != nullptr) before = search_.certificates[query];
    write_answer(keys, search_, query,
                 {before.survivors + delta_.count(), before.scored + delta_.count(), before.bound});
  }

  const Search& search_;
  const Delta& delta_;
  CosineScan scan_;
  ThreadPool* pool_ = nullptr;  // null also for what is not worth several threads
  int64_t batch_;
  int64_t block_rows_;
  int64_t num_chunks_;
  int64_t chunk_rows_;
  std::vector<BestKeys> best_;  // [chunks, queries]
};

}  // namespace

void search_delta(const Context& context, const Search& search, const Delta& delta) {
  DeltaSearch(context, search, delta).run();
}

}  // namespace recengine
