#include "triton/batch.h"

#include <algorithm>
#include <cstdint>

#include "recengine/tensor.h"
#include "triton/status.h"

namespace recengine::triton {
namespace {

template <typename T>
void append(std::vector<T>& out, const Matrix<const T>& rows) {
  out.insert(out.end(), rows.data, rows.data + rows.rows * rows.cols);
}

// Several requests as one engine call.
class Call {
 public:
  explicit Call(Span<Request* const> requests) {
    for (const Request* request : requests) add(*request);
    item_ids_.resize(static_cast<size_t>(rows_ * k_));
    scores_.resize(static_cast<size_t>(rows_ * k_));
  }

  void run(Stage stage, const Engine& engine) {
    const UserBatch users = {
        ids_, {lengths_.data(), rows_, width(lengths_)}, {dense_.data(), rows_, width(dense_)}};
    if (stage == Stage::kRetrieval) {
      engine.retrieve(users, answer());
      return;
    }
    const CandidateBatch candidates = {{candidates_.data(), rows_, width(candidates_)},
                                       {candidate_scores_.data(), rows_, width(candidates_)}};
    engine.rank(users, candidates, answer());
  }

  Recommendations answer() { return {{item_ids_.data(), rows_, k_}, {scores_.data(), rows_, k_}}; }

 private:
  void add(const Request& request) {
    const WireUsers users = request.users();
    for (int64_t row = 0; row < users.ids.rows; ++row) ids_.push_back(users.ids.row(row));
    append(lengths_, users.lengths);
    append(dense_, users.dense);
    append(candidates_, request.candidates().item_ids);
    append(candidate_scores_, request.candidates().scores);
    rows_ += request.rows();
    k_ = std::max(k_, request.k());
  }

  template <typename T>
  int64_t width(const std::vector<T>& values) const {
    return static_cast<int64_t>(values.size()) / rows_;
  }

  int64_t rows_ = 0;
  int64_t k_ = 0;  // the longest answer; a shorter one is its prefix
  std::vector<const int64_t*> ids_;
  std::vector<int32_t> lengths_;
  std::vector<float> dense_;
  std::vector<int64_t> candidates_;
  std::vector<float> candidate_scores_;
  std::vector<int64_t> item_ids_;
  std::vector<float> scores_;
};

void report_batch(const Instance& instance, int64_t rows, const Times& times) {
  warn(TRITONBACKEND_ModelInstanceReportBatchStatistics(
      instance.handle, static_cast<uint64_t>(rows), times.start_ns, times.compute_start_ns,
      times.compute_end_ns, now_ns()));
}

void run_call(const ModelConfig& config, const Engine& engine, Span<Request* const> requests,
              Times times) {
  times.compute_start_ns = now_ns();
  try {
    Call call(requests);
    call.run(config.stage, engine);
    times.compute_end_ns = now_ns();
    const Recommendations answer = call.answer();
    int64_t row = 0;
    for (Request* request : requests) {
      request->answer(answer, row, times);
      row += request->rows();
    }
    report_batch(requests[0]->instance(), row, times);
    return;
  } catch (...) {
    if (requests.size == 1) {
      requests[0]->fail(current_error(TRITONSERVER_ERROR_INTERNAL), times);
      return;
    }
  }
  // One of them spoils the call: each alone finds out which.
  for (int64_t i = 0; i < requests.size; ++i) run_call(config, engine, {&requests[i], 1}, times);
}

// The requests that are still wanted and pass their checks; the others are answered.
std::vector<Request*> read_all(const ModelConfig& config, const Schema& schema,
                               const Requests& requests, const Times& times) {
  std::vector<Request*> valid;
  valid.reserve(requests.size());
  for (const std::unique_ptr<Request>& request : requests) {
    if (request->is_cancelled()) {
      request->fail(TRITONSERVER_ERROR_CANCELLED, "[" + config.name + "] cancelled by the client",
                    times);
      continue;
    }
    try {
      request->read(config, schema);
      valid.push_back(request.get());
    } catch (...) {
      request->fail(current_error(TRITONSERVER_ERROR_INTERNAL), times);
    }
  }
  return valid;
}

int64_t candidate_width(const Request* request) { return request->candidates().item_ids.cols; }

}  // namespace

void run_batch(const ModelConfig& config, const Schema& schema, const Engine& engine,
               Requests requests) {
  Times times;
  times.start_ns = now_ns();
  std::vector<Request*> valid = read_all(config, schema, requests, times);
  std::stable_sort(valid.begin(), valid.end(), [](const Request* a, const Request* b) {
    return candidate_width(a) < candidate_width(b);
  });
  for (size_t begin = 0; begin < valid.size();) {
    size_t end = begin + 1;
    while (end < valid.size() && candidate_width(valid[end]) == candidate_width(valid[begin])) {
      ++end;
    }
    run_call(config, engine, {&valid[begin], static_cast<int64_t>(end - begin)}, times);
    begin = end;
  }
}

}  // namespace recengine::triton
