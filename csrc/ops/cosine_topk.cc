#include "recengine/ops/cosine_topk.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "ops/best_keys.h"
#include "ops/cosine_topk_check.h"
#include "ops/item_rows.h"
#include "ops/search.h"
#include "ops/sort_key.h"
#include "recengine/error.h"
#include "recengine/vocabulary.h"

namespace recengine {
namespace {

[[noreturn]] void fail(const std::string& what) { throw InputError("[cosine_topk] " + what); }

void expect(const char* what, int64_t expected, int64_t found) {
  if (expected == found) return;
  fail(std::string(what) + " " + std::to_string(expected) + ", found " + std::to_string(found));
}

Exclusions read_exclusions(int64_t rows, const TopKQuery& query) {
  const int64_t batch = query.queries.rows;
  const int64_t total = query.exclude_rows.size;
  Exclusions found;
  found.reserve(total);
  int64_t position = 0;
  for (int64_t q = 0; q < batch && !query.exclude_lengths.empty(); ++q) {
    const int64_t length = query.exclude_lengths[q];
    if (length < 0 || length > total - position) {
      fail("exclude_lengths[" + std::to_string(q) + "]: expected 0 to " +
           std::to_string(total - position) + ", the rows left; found " + std::to_string(length));
    }
    for (const int64_t end = position + length; position < end; ++position) {
      const int64_t row = query.exclude_rows[position];
      if (row < 0 || row >= rows) {
        fail("exclude_rows[" + std::to_string(position) + "]: expected 0 to " +
             std::to_string(rows - 1) + ", found " + std::to_string(row));
      }
      found.add(row);
    }
    found.end_query();
  }
  expect("exclude_lengths: expected to sum to", total, position);
  return found;
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

}  // namespace

void check_topk_shapes(int64_t rows, int64_t dim, const TopKQuery& query, Matrix<int64_t> out_rows,
                       Matrix<float> out_scores) {
  expect("queries: expected dim", dim, query.queries.cols);
  expect("out_rows: expected batch", query.queries.rows, out_rows.rows);
  expect("out_scores: expected batch", out_rows.rows, out_scores.rows);
  expect("out_scores: expected k", out_rows.cols, out_scores.cols);
  const Span<const uint64_t> words = query.allow_bitmap;
  if (words.data != nullptr && words.size != bitmap_words(rows)) {
    fail("allow: expected " + std::to_string(bitmap_words(rows)) + " words, found " +
         std::to_string(words.size));
  }
  if (!query.exclude_lengths.empty() || !query.exclude_rows.empty()) {
    expect("exclude_lengths: expected batch", out_rows.rows, query.exclude_lengths.size);
  }
}

void check_topk_values(int64_t rows, const TopKQuery& query) {
  read_exclusions(rows, query);
  normalise_queries(query.queries, query.queries.cols);
}

CheckedCall::CheckedCall(ThreadPool* pool, int64_t rows, int64_t dim, const TopKQuery& query,
                         Matrix<int64_t> out_rows, Matrix<float> out_scores,
                         TopKCertificate* certificates)
    : padded_dim_((dim + kScoreLanes - 1) / kScoreLanes * kScoreLanes),
      out_rows_(out_rows),
      out_scores_(out_scores),
      certificates_(certificates) {
  check_topk_shapes(rows, dim, query, out_rows, out_scores);
  exclusions_ = read_exclusions(rows, query);
  exclusions_.finish(pool);
  units_ = normalise_queries(query.queries, padded_dim_);
}

Search CheckedCall::over(const ItemIndex& index, const uint64_t* allow_bitmap) const {
  return {&index,       {units_.data(), out_rows_.rows, padded_dim_},
          &exclusions_, allow_bitmap,
          out_rows_,    out_scores_,
          certificates_};
}

void write_answer(std::vector<uint64_t>& keys, const Search& search, int64_t query,
                  const Effort& effort) {
  const int64_t k = search.k();
  sort_best(keys, k);
  for (int64_t i = 0; i < k; ++i) {
    const bool is_item = i < static_cast<int64_t>(keys.size());
    const uint64_t key = is_item ? keys[static_cast<size_t>(i)] : 0;
    search.out_rows.row(query)[i] = is_item ? int64_t{key_position(key)} : kNoItem;
    search.out_scores.row(query)[i] = is_item ? key_score(key) : kLowest;
  }
  if (search.certificates != nullptr) {
    search.certificates[query] = {search.out_scores.row(query)[k - 1], effort.bound,
                                  effort.survivors, effort.scored};
  }
}

void search(const Context& context, const Search& search) {
  if (!search_few(context, search)) search_all(context, search);
}

void search_all(const Context& context, const Search& search) {
  const ItemIndex& index = *search.index;
  if (index.codes() != nullptr && worth_codes(index.rows(), search.k())) {
    search_codes(context, search);
  } else {
    search_vectors(context, search);
  }
}

void cosine_topk(const Context& context, const ItemIndex& index, const TopKQuery& query,
                 Matrix<int64_t> out_rows, Matrix<float> out_scores,
                 TopKCertificate* certificates) {
  const CheckedCall call(context.pool, index.rows(), index.dim(), query, out_rows, out_scores,
                         certificates);
  if (!call.asks_nothing()) search(context, call.over(index, query.allow_bitmap.data));
}

}  // namespace recengine
