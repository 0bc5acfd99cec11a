#pragma once

#include <cstdint>
#include <vector>

#include "ops/bitmap.h"
#include "recengine/tensor.h"

namespace recengine {

class ThreadPool;

// Rows that each query must not be answered with. Filled query by query, then asked.
class Exclusions {
 public:
  bool empty() const { return rows_.empty(); }
  int64_t queries() const { return static_cast<int64_t>(begin_.size()) - 1; }

  // In the order in which they were added; may repeat.
  Span<const uint32_t> of(int64_t query) const {
    const int64_t first = begin_[static_cast<size_t>(query)];
    return {rows_.data() + first, begin_[static_cast<size_t>(query) + 1] - first};
  }

  void reserve(int64_t rows) { rows_.reserve(static_cast<size_t>(rows)); }
  void add(int64_t row) { rows_.push_back(static_cast<uint32_t>(row)); }
  void end_query() { begin_.push_back(static_cast<int64_t>(rows_.size())); }

  // After the last query, before hold().
  void finish(ThreadPool* pool);

  bool hold(int64_t query, int64_t row) const {
    if (rows_.empty()) return false;
    const uint64_t word = filters_[static_cast<size_t>(filter_word(query, row))];
    return (word >> row % kBitmapWord & 1) != 0 && is_in_set(query, static_cast<uint32_t>(row));
  }

 private:
  // Of a query's filter, a bitmap of its rows modulo the bits. Of a usual list, some hundred rows,
  // it lets few others pass.
  static constexpr int64_t kFilterWords = 64;
  static constexpr uint32_t kNoRow = ~uint32_t{0};

  // A query's rows in a table with open addressing, `1 << bits` slots from `first` on.
  struct Set {
    int64_t first = 0;
    int bits = 0;
  };

  static int64_t filter_word(int64_t query, int64_t row) {
    return query * kFilterWords + row / kBitmapWord % kFilterWords;
  }
  static size_t slot_of(uint32_t row, int bits) {
    constexpr uint64_t kSpread = 0x9e3779b97f4a7c15;
    return static_cast<size_t>(row * kSpread >> (64 - bits));
  }

  void fill_set(int64_t query);
  bool is_in_set(int64_t query, uint32_t row) const;

  std::vector<uint32_t> rows_;
  std::vector<int64_t> begin_ = {0};  // [queries + 1]
  std::vector<uint64_t> filters_;     // [queries, kFilterWords]
  std::vector<Set> sets_;             // [queries]
  std::vector<uint32_t> slots_;       // of all sets; kNoRow: free
};

}  // namespace recengine
