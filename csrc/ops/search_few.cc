// Searches of the few items that a bitmap allows. To fetch them one by one takes longer than to
// read as many in order; for many queries they are then packed, as an index of their own.
#include <algorithm>
#include <vector>

#include "ops/code_scan_kernel.h"
#include "ops/search.h"
#include "recengine/vocabulary.h"

namespace recengine {
namespace {

// What a dimension of an item costs, as CodeScanKernel::product_cost: in bytes read in order.
constexpr double kFetchCost = 10;    // of a row that lies anywhere
constexpr double kPackCost = 36;     // of putting it into an index of its own
constexpr double kVectorCost = 2.2;  // of a product of vectors

constexpr int64_t kMostPackedValues = 6 << 20;  // which take 5 bytes each

constexpr int64_t kSampledWords = 64;
constexpr int64_t kWordsAtOnce = 32;

// Writes the rows of some words and returns how many they are. No branch for each word: nothing
// would foresee it.
int64_t write_rows(const uint64_t* bitmap, int64_t begin, int64_t end, uint32_t* rows) {
  int64_t filled[kWordsAtOnce];
  int64_t count = 0;
  for (int64_t word = begin; word < end; ++word) {
    filled[count] = word;
    count += bitmap[word] != 0 ? 1 : 0;
  }
  uint32_t* to = rows;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = filled[i] * kBitmapWord;
    for (uint64_t bits = bitmap[filled[i]]; bits != 0; bits &= bits - 1) {
      *to++ = static_cast<uint32_t>(first + __builtin_ctzll(bits));
    }
  }
  return to - rows;
}

class FewSearch {
 public:
  FewSearch(const Context& context, const Search& search)
      : context_(context), search_(search), total_(search.index->rows()) {
    const auto queries = static_cast<double>(search.queries.count);
    const double product = code_scan_for(context.isa, search.queries.count).product_cost * queries;
    by_vectors_ = kFetchCost + kVectorCost * queries;
    by_codes_ = kFetchCost + kPackCost + product;
    of_all_ = 1 + product;
  }

  // False where a search of all items is faster.
  bool run() {
    if (!find_rows()) return false;
    const auto rows = static_cast<int64_t>(rows_.size());
    if (is_packed(rows)) {
      search_packed();
    } else if (rows <= worth_vectors()) {
      search_vectors(context_, search_, &rows_);
    } else {
      return false;
    }
    return true;
  }

 private:
  // False when there are more than are searched faster by themselves.
  bool find_rows() {
    const int64_t most = most_worth();
    if (allows_more(2 * most)) return false;
    const int64_t words = bitmap_words(total_);
    for (int64_t word = 0; word < words; word += kWordsAtOnce) {
      uint32_t found[kWordsAtOnce * kBitmapWord];
      const int64_t count =
          write_rows(search_.allow_bitmap, word, std::min(word + kWordsAtOnce, words), found);
      rows_.insert(rows_.end(), found, found + count);
      if (static_cast<int64_t>(rows_.size()) > most) return false;
    }
    while (!rows_.empty() && rows_.back() >= total_) rows_.pop_back();
    return true;
  }

  // Probably, by a sample: most bitmaps allow most rows, and need not be read for it.
  bool allows_more(int64_t most) const {
    const int64_t words = bitmap_words(total_);
    const int64_t sampled = std::min(kSampledWords, words);
    int64_t rows = 0;
    for (int64_t i = 0; i < sampled; ++i) {
      rows += count_set(search_.allow_bitmap[i * words / sampled]);
    }
    return rows * words > most * sampled;
  }

  int64_t most_worth() const {
    const int64_t packed = std::min(worth(by_codes_), kMostPackedValues / search_.index->dim());
    return std::max(worth_vectors(), is_packed(packed) ? packed : 0);
  }

  int64_t worth_vectors() const {
    return search_.index->codes() == nullptr ? total_ / 2 : worth(by_vectors_);
  }

  // So many rows, at this cost each, take as long as all.
  int64_t worth(double cost) const {
    return static_cast<int64_t>(static_cast<double>(total_) * of_all_ / cost);
  }

  bool is_packed(int64_t rows) const {
    return search_.index->codes() != nullptr && by_codes_ < by_vectors_ &&
           rows * search_.index->dim() <= kMostPackedValues && worth_codes(rows, search_.k());
  }

  void search_packed() const {
    const ItemIndex index = ItemIndex::of_rows(*search_.index, rows_, context_);
    const Exclusions exclusions = excluded_among_rows();
    Search search = search_;
    search.index = &index;
    search.exclusions = &exclusions;
    search.allow_bitmap = nullptr;
    search_all(context_, search);
    for (int64_t i = 0; i < search.out_rows.rows * search.out_rows.cols; ++i) {
      int64_t& row = search.out_rows.data[i];
      if (row != kNoItem) row = rows_[static_cast<size_t>(row)];
    }
  }

  // By their places among the rows.
  Exclusions excluded_among_rows() const {
    const Exclusions& all = *search_.exclusions;
    Exclusions found;
    for (int64_t query = 0; query < all.queries(); ++query) {
      for (const uint32_t row : all.of(query)) {
        if (row >= total_ || !is_set(search_.allow_bitmap, row)) continue;
        found.add(std::lower_bound(rows_.begin(), rows_.end(), row) - rows_.begin());
      }
      found.end_query();
    }
    found.finish(context_.pool);
    return found;
  }

  const Context context_;
  const Search& search_;
  int64_t total_;
  double by_vectors_;  // costs of an item, fetched
  double by_codes_;
  double of_all_;               // of one of all
  std::vector<uint32_t> rows_;  // that are allowed, ascending
};

}  // namespace

bool search_few(const Context& context, const Search& search) {
  return search.allow_bitmap != nullptr && FewSearch(context, search).run();
}

}  // namespace recengine
