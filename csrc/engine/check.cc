#include <cmath>
#include <string>

#include "recengine/engine.h"
#include "recengine/error.h"
#include "recengine/vocabulary.h"

namespace recengine {
namespace {

// Throws InputErrors that begin with the stage.
class Checker {
 public:
  Checker(const char* stage, const Schema& schema) : stage_(stage), schema_(schema) {}

  void users(const WireUsers& users) const {
    const int64_t batch = users.ids.rows;
    const int64_t num_features = static_cast<int64_t>(schema_.features.size());
    if (batch < 1) fail("ids", "expected at least one user, found " + std::to_string(batch));
    require_shape("lengths", users.lengths.rows, users.lengths.cols, batch, num_features + 1);
    const int64_t num_dense = static_cast<int64_t>(schema_.dense_features.size());
    if (num_dense > 0 || users.dense.cols > 0) {
      require_shape("dense", users.dense.rows, users.dense.cols, batch, num_dense);
    }
    for (int64_t user = 0; user < batch; ++user) {
      lengths(users, user);
      dense(users, user);
    }
  }

  void vectors(int64_t batch, Matrix<const float> vectors, int64_t dim) const {
    require_shape("user", vectors.rows, vectors.cols, batch, dim);
  }

  void graph_scores(const CandidateBatch& candidates, Matrix<const float> scores) const {
    require_shape("graph_scores", scores.rows, scores.cols, candidates.item_ids.rows,
                  graph_slots(candidates.item_ids.cols));
  }

  void candidates(int64_t batch, const CandidateBatch& candidates, bool on_host) const {
    const int64_t n = candidates.item_ids.cols;
    require_shape("candidates", candidates.item_ids.rows, n, batch, n);
    if (n > schema_.max_candidates) {
      fail("candidates", "expected at most " + std::to_string(schema_.max_candidates) +
                             " per user, found " + std::to_string(n));
    }
    require_shape("candidate_scores", candidates.scores.rows, candidates.scores.cols, batch, n);
    if (on_host) candidate_scores(candidates);
  }

  void candidate_scores(const CandidateBatch& candidates) const {
    for (int64_t user = 0; user < candidates.scores.rows; ++user) {
      for (int64_t i = 0; i < candidates.scores.cols; ++i) {
        const float score = candidates.scores.row(user)[i];
        if (candidates.item_ids.row(user)[i] == kNoItem || std::isfinite(score)) continue;
        fail(at("candidate_scores", user, i),
             "expected a finite score, found " + std::to_string(score));
      }
    }
  }

 private:
  void lengths(const WireUsers& users, int64_t user) const {
    const int32_t* lengths = users.lengths.row(user);
    int64_t total = 0;
    for (int64_t f = 0; f < users.lengths.cols; ++f) {
      if (lengths[f] < 0) {
        fail(at("lengths", user, f) + " (" + list_name(f) + ")",
             "expected a length >= 0, found " + std::to_string(lengths[f]));
      }
      total += lengths[f];
    }
    if (total > users.ids.cols) {
      fail("lengths[" + std::to_string(user) + "]",
           "expected a sum of at most " + std::to_string(users.ids.cols) +
               ", the width of ids, found " + std::to_string(total));
    }
  }

  void dense(const WireUsers& users, int64_t user) const {
    for (int64_t i = 0; i < users.dense.cols; ++i) {
      const float value = users.dense.row(user)[i];
      if (!std::isfinite(value)) {
        fail(at("dense", user, i) + " (" + schema_.dense_features[static_cast<size_t>(i)] + ")",
             "expected a finite value, found " + std::to_string(value));
      }
    }
  }

  std::string list_name(int64_t f) const {
    const auto position = static_cast<size_t>(f);
    return position < schema_.features.size() ? schema_.features[position].name : "excluded items";
  }

  void require_shape(const char* name, int64_t rows, int64_t cols, int64_t expected_rows,
                     int64_t expected_cols) const {
    if (rows == expected_rows && cols == expected_cols) return;
    fail(name, "expected shape [" + std::to_string(expected_rows) + ", " +
                   std::to_string(expected_cols) + "], found [" + std::to_string(rows) + ", " +
                   std::to_string(cols) + "]");
  }

  static std::string at(const char* name, int64_t row, int64_t col) {
    return std::string(name) + "[" + std::to_string(row) + ", " + std::to_string(col) + "]";
  }

  [[noreturn]] void fail(const std::string& what, const std::string& message) const {
    throw InputError(std::string("[") + stage_ + "] " + what + ": " + message);
  }

  const char* stage_;
  const Schema& schema_;
};

}  // namespace

void check(const Schema& schema, const WireUsers& users) {
  Checker("retrieval", schema).users(users);
}

void check(const Schema& schema, const WireUsers& users, const CandidateBatch& candidates,
           bool on_host) {
  const Checker checker("ranking", schema);
  checker.users(users);
  checker.candidates(users.ids.rows, candidates, on_host);
}

void check_scores(const Schema& schema, const CandidateBatch& candidates) {
  Checker("ranking", schema).candidate_scores(candidates);
}

void check(const Schema& schema, const WireUsers& users, Matrix<const float> vectors, int64_t dim) {
  const Checker checker("retrieval", schema);
  checker.users(users);
  checker.vectors(users.ids.rows, vectors, dim);
}

void check(const Schema& schema, const WireUsers& users, const CandidateBatch& candidates,
           Matrix<const float> graph_scores, bool on_host) {
  const Checker checker("ranking", schema);
  checker.users(users);
  checker.candidates(users.ids.rows, candidates, on_host);
  checker.graph_scores(candidates, graph_scores);
}

}  // namespace recengine
