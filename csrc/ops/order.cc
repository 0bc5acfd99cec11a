#include "recengine/ops/order.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "ops/best_keys.h"
#include "ops/order_check.h"
#include "ops/sort_key.h"
#include "recengine/error.h"
#include "recengine/vocabulary.h"

namespace recengine {
namespace {

template <typename A, typename B>
void check_same_shape(const char* name, const Matrix<A>& expected, const Matrix<B>& found) {
  if (expected.rows == found.rows && expected.cols == found.cols) return;
  throw InputError(std::string("[order] ") + name + ": expected shape [" +
                   std::to_string(expected.rows) + ", " + std::to_string(expected.cols) +
                   "], found [" + std::to_string(found.rows) + ", " + std::to_string(found.cols) +
                   "]");
}

[[noreturn]] void fail_score(int64_t row, int64_t col, float score) {
  throw InputError("[order] scores[" + std::to_string(row) + ", " + std::to_string(col) +
                   "]: expected a finite score, found " + std::to_string(score));
}

}  // namespace

void check_order_shapes(Matrix<const int64_t> candidate_ids, Matrix<const float> scores,
                        Matrix<int64_t> out_ids, Matrix<float> out_scores) {
  check_same_shape("scores", candidate_ids, scores);
  check_same_shape("out_scores", out_ids, out_scores);
  if (out_ids.rows != candidate_ids.rows) {
    throw InputError("[order] out_ids: expected " + std::to_string(candidate_ids.rows) +
                     " rows, found " + std::to_string(out_ids.rows));
  }
}

void check_order_scores(Matrix<const int64_t> candidate_ids, Matrix<const float> scores) {
  for (int64_t row = 0; row < candidate_ids.rows; ++row) {
    for (int64_t col = 0; col < candidate_ids.cols; ++col) {
      const float score = scores.row(row)[col];
      if (candidate_ids.row(row)[col] != kNoItem && !std::isfinite(score)) {
        fail_score(row, col, score);
      }
    }
  }
}

void order(Matrix<const int64_t> candidate_ids, Matrix<const float> scores, Matrix<int64_t> out_ids,
           Matrix<float> out_scores) {
  check_order_shapes(candidate_ids, scores, out_ids, out_scores);
  std::vector<uint64_t> keys;
  keys.reserve(static_cast<size_t>(candidate_ids.cols));
  for (int64_t row = 0; row < candidate_ids.rows; ++row) {
    const int64_t* ids = candidate_ids.row(row);
    const float* values = scores.row(row);
    keys.clear();
    for (int64_t col = 0; col < candidate_ids.cols; ++col) {
      if (ids[col] == kNoItem) continue;
      if (!std::isfinite(values[col])) fail_score(row, col, values[col]);
      keys.push_back(sort_key(values[col], static_cast<uint32_t>(col)));
    }
    sort_best(keys, out_ids.cols);
    for (int64_t i = 0; i < out_ids.cols; ++i) {
      const bool found = i < static_cast<int64_t>(keys.size());
      const uint32_t col = found ? key_position(keys[static_cast<size_t>(i)]) : 0;
      out_ids.row(row)[i] = found ? ids[col] : kNoItem;
      out_scores.row(row)[i] = found ? values[col] : -std::numeric_limits<float>::infinity();
    }
  }
}

}  // namespace recengine
