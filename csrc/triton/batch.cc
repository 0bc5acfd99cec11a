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
  Call(Stage stage, const Engine& engine, Span<Request* const> requests)
      : stage_(stage), engine_(engine) {
    for (const Request* request : requests) add(*request);
  }

  // Borrows from the call.
  Answer run() {
    switch (stage_) {
      case Stage::kRetrievalLookup:
        engine_.look_up(users(), inputs(engine_.widths().retrieval_sparse).sparse);
        break;
      case Stage::kTopK:
        engine_.search(users(), matrix(graph_output_), top());
        break;
      case Stage::kRetrieval:
        engine_.retrieve(users(), top());
        break;
      case Stage::kRankingLookup:
        engine_.look_up(users(), candidates(), inputs(engine_.widths().ranking_sparse));
        break;
      case Stage::kOrder:
        engine_.order(users(), candidates(), matrix(graph_output_), top());
        break;
      case Stage::kRanking:
        engine_.rank(users(), candidates(), top());
        break;
    }
    return answer_;
  }

 private:
  void add(const Request& request) {
    const WireUsers users = request.users();
    for (int64_t row = 0; row < users.ids.rows; ++row) ids_.push_back(users.ids.row(row));
    append(lengths_, users.lengths);
    append(dense_, users.dense);
    append(candidates_, request.candidates().item_ids);
    append(candidate_scores_, request.candidates().scores);
    append(graph_output_, request.graph_output());
    rows_ += request.rows();
    k_ = std::max(k_, request.k());
  }

  template <typename T>
  Matrix<const T> matrix(const std::vector<T>& values) const {
    return {values.data(), rows_, static_cast<int64_t>(values.size()) / rows_};
  }

  UserBatch users() const { return {ids_, matrix(lengths_), matrix(dense_)}; }
  CandidateBatch candidates() const { return {matrix(candidates_), matrix(candidate_scores_)}; }

  // Where the items of the answer go.
  Recommendations top() {
    item_ids_.resize(static_cast<size_t>(rows_ * k_));
    floats_.resize(item_ids_.size());
    answer_.top = {{item_ids_.data(), rows_, k_}, {floats_.data(), rows_, k_}};
    return answer_.top;
  }

  // Where a graph's inputs go; without candidates, `sparse` alone.
  RankerInputs inputs(int64_t sparse_width) {
    const bool ranking = request_of(stage_).candidates;
    const int64_t slots = ranking ? graph_slots(matrix(candidates_).cols) : 0;
    const int64_t item_dim = engine_.widths().item;
    floats_.resize(static_cast<size_t>(rows_ * (sparse_width + slots * (item_dim + 1))));
    float* const sparse = floats_.data();
    float* const items = sparse + rows_ * sparse_width;
    float* const scores = items + rows_ * slots * item_dim;
    answer_.inputs = {
        {sparse, rows_, sparse_width}, {items, rows_ * slots, item_dim}, {scores, rows_, slots}};
    return answer_.inputs;
  }

  const Stage stage_;
  const Engine& engine_;
  int64_t rows_ = 0;
  int64_t k_ = 0;  // the longest answer; a shorter one is its prefix
  std::vector<const int64_t*> ids_;
  std::vector<int32_t> lengths_;
  std::vector<float> dense_;
  std::vector<int64_t> candidates_;
  std::vector<float> candidate_scores_;
  std::vector<float> graph_output_;
  std::vector<int64_t> item_ids_;
  std::vector<float> floats_;  // the answer's: scores, or inputs of a graph
  Answer answer_;
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
    Call call(config.stage, engine, requests);
    const Answer answer = call.run();
    times.compute_end_ns = now_ns();
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
                               const GraphWidths& widths, const Requests& requests,
                               const Times& times) {
  std::vector<Request*> valid;
  valid.reserve(requests.size());
  for (const std::unique_ptr<Request>& request : requests) {
    if (request->is_cancelled()) {
      request->fail(TRITONSERVER_ERROR_CANCELLED, "[" + config.name + "] cancelled by the client",
                    times);
      continue;
    }
    try {
      request->read(config, schema, widths);
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
  std::vector<Request*> valid = read_all(config, schema, engine.widths(), requests, times);
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
