#include "triton/batch.h"

#include <algorithm>
#include <cstdint>

#include "recengine/tensor.h"
#include "triton/call_memory.h"
#include "triton/status.h"

namespace recengine::triton {
namespace {

// Several requests as one engine call.
class Call {
 public:
  Call(Stage stage, const Engine& engine, Span<Request* const> requests, CallMemory& memory)
      : stage_(stage), engine_(engine), requests_(requests), memory_(memory) {
    for (const Request* request : requests) {
      const WireUsers users = request->users();
      for (int64_t row = 0; row < users.ids.rows; ++row) ids_.push_back(users.ids.row(row));
      lengths_.insert(lengths_.end(), users.lengths.data, end_of(users.lengths));
      dense_.insert(dense_.end(), users.dense.data, end_of(users.dense));
      k_ = std::max(k_, request->k());
    }
    rows_ = static_cast<int64_t>(ids_.size());
  }

  int64_t rows() const { return rows_; }

  // Lies in the memory.
  Answer run() {
    const DeviceWork work = memory_.work();
    switch (stage_) {
      case Stage::kRetrievalLookup:
        engine_.look_up(users(), inputs(engine_.widths().retrieval_sparse).sparse, work);
        break;
      case Stage::kTopK:
        engine_.search(users(), graph_output(), top(), work);
        break;
      case Stage::kRetrieval:
        engine_.retrieve(users(), top());
        break;
      case Stage::kRankingLookup:
        engine_.look_up(users(), candidates(), inputs(engine_.widths().ranking_sparse), work);
        break;
      case Stage::kOrder:
        engine_.order(users(), candidates(), graph_output(), top(), work);
        break;
      case Stage::kRanking:
        engine_.rank(users(), candidates(), top());
        break;
    }
    answer_.last = stage_ == Stage::kOrder || stage_ == Stage::kRanking;
    return answer_;
  }

 private:
  template <typename T>
  static const T* end_of(const Matrix<const T>& rows) {
    return rows.data + rows.rows * rows.cols;
  }

  template <typename T>
  Matrix<const T> matrix(const std::vector<T>& values) const {
    return {values.data(), rows_, static_cast<int64_t>(values.size()) / rows_};
  }

  // The rows of all requests, of equal widths, one after another; those of a lone request as they
  // are, where they lie with the engine.
  template <typename T>
  Matrix<const T> gather(const InputTensor<T>& (Request::*input)() const) {
    const InputTensor<T>& first = (requests_[0]->*input)();
    if (requests_.size == 1 && first.device == memory_.device()) return first.view;
    T* const rows = memory_.take<T>(rows_ * first.view.cols);
    T* next = rows;
    for (const Request* request : requests_) {
      const Matrix<const T> own = (request->*input)().view;
      memory_.copy(next, own.data, own.rows * own.cols * int64_t{sizeof(T)});
      next += own.rows * own.cols;
    }
    return {rows, rows_, first.view.cols};
  }

  UserBatch users() const { return {ids_, matrix(lengths_), matrix(dense_)}; }

  CandidateBatch candidates() {
    return {gather(&Request::candidates), gather(&Request::candidate_scores)};
  }

  Matrix<const float> graph_output() { return gather(&Request::graph_output); }

  // Where the items of the answer go.
  Recommendations top() {
    answer_.top = {{memory_.take<int64_t>(rows_ * k_), rows_, k_},
                   {memory_.take<float>(rows_ * k_), rows_, k_}};
    return answer_.top;
  }

  // Where a graph's inputs go; without candidates, `sparse` alone.
  RankerInputs inputs(int64_t sparse_width) {
    const bool ranking = request_of(stage_).candidates;
    const int64_t slots = ranking ? graph_slots(requests_[0]->candidates().view.cols) : 0;
    const int64_t item_dim = engine_.widths().item;
    answer_.inputs = {{memory_.take<float>(rows_ * sparse_width), rows_, sparse_width},
                      {memory_.take<float>(rows_ * slots * item_dim), rows_ * slots, item_dim},
                      {memory_.take<float>(rows_ * slots), rows_, slots}};
    return answer_.inputs;
  }

  const Stage stage_;
  const Engine& engine_;
  const Span<Request* const> requests_;
  CallMemory& memory_;
  int64_t rows_ = 0;
  int64_t k_ = 0;  // the longest answer; a shorter one is its prefix
  std::vector<const int64_t*> ids_;
  std::vector<int32_t> lengths_;
  std::vector<float> dense_;
  Answer answer_;
};

void report_batch(const Instance& instance, int64_t rows, const Times& times) {
  warn(TRITONBACKEND_ModelInstanceReportBatchStatistics(
      instance.handle, static_cast<uint64_t>(rows), times.start_ns, times.compute_start_ns,
      times.compute_end_ns, now_ns()));
}

// Answers every request. On a GPU nothing is sent or released before all copies are done.
void respond(Span<Request* const> requests, const Answer& answer, CallMemory& memory,
             const Times& times) noexcept {
  const bool at_once = memory.device() == kHost;
  int64_t row = 0;
  for (Request* request : requests) {
    const int64_t rows = request->rows();
    request->answer(answer, row, memory);
    if (at_once) request->send(times);
    row += rows;
  }
  report_batch(requests[0]->instance(), row, times);
  if (at_once) return;
  try {
    memory.finish();
    for (Request* request : requests) request->send(times);
  } catch (...) {
    for (Request* request : requests) {
      request->fail(current_error(TRITONSERVER_ERROR_INTERNAL), times);
    }
  }
}

const std::function<void()> nothing = [] {};

// The call's work, counted where it was a graph's replay.
Answer run_counted(Call& call, const DeviceWork& work, const Metric& replays) {
  const int64_t before = work.slot == nullptr ? 0 : work.slot->num_replays();
  const Answer answer = call.run();
  if (work.slot != nullptr && work.slot->num_replays() > before) replays.increment();
  return answer;
}

// Returns how many rows were computed; 0 when the call failed.
int64_t run_call(const BatchRunner& runner, Span<Request* const> requests, Times times,
                 const std::function<void()>& computed) {
  times.compute_start_ns = now_ns();
  try {
    CallMemory memory(runner.slots);
    Call call(runner.config.stage, runner.engine, requests, memory);
    const Answer answer = run_counted(call, memory.work(), runner.replays);
    times.compute_end_ns = now_ns();  // on a GPU some of the work is still under way
    computed();
    respond(requests, answer, memory, times);
    return call.rows();
  } catch (...) {
    if (requests.size == 1) {
      requests[0]->fail(current_error(TRITONSERVER_ERROR_INTERNAL), times);
      return 0;
    }
  }
  // One of them spoils the call: each alone finds out which.
  for (int64_t i = 0; i < requests.size; ++i) {
    run_call(runner, {&requests[i], 1}, times, nothing);
  }
  return 0;
}

// The requests that are still wanted and pass their checks; the others are answered.
std::vector<Request*> read_all(const BatchRunner& runner, const Requests& requests,
                               const Times& times) {
  const GraphWidths widths = runner.engine.widths();
  std::vector<Request*> valid;
  valid.reserve(requests.size());
  for (const std::unique_ptr<Request>& request : requests) {
    if (request->is_cancelled()) {
      request->fail(TRITONSERVER_ERROR_CANCELLED,
                    "[" + runner.config.name + "] cancelled by the client", times);
      continue;
    }
    try {
      request->read(runner.config, runner.schema, widths, runner.engine.device());
      valid.push_back(request.get());
    } catch (...) {
      request->fail(current_error(TRITONSERVER_ERROR_INTERNAL), times);
    }
  }
  return valid;
}

int64_t candidate_width(const Request* request) { return request->candidates().view.cols; }

}  // namespace

int64_t run_batch(const BatchRunner& runner, Requests requests,
                  const std::function<void()>& computed) {
  Times times;
  times.start_ns = now_ns();
  std::vector<Request*> valid = read_all(runner, requests, times);
  std::stable_sort(valid.begin(), valid.end(), [](const Request* a, const Request* b) {
    return candidate_width(a) < candidate_width(b);
  });
  int64_t rows = 0;
  bool failed = false;
  for (size_t begin = 0; begin < valid.size();) {
    size_t end = begin + 1;
    while (end < valid.size() && candidate_width(valid[end]) == candidate_width(valid[begin])) {
      ++end;
    }
    const Span<Request* const> call(&valid[begin], static_cast<int64_t>(end - begin));
    const bool last = end == valid.size();
    const int64_t own_rows = run_call(runner, call, times, last ? computed : nothing);
    failed = failed || own_rows == 0;
    rows += own_rows;
    begin = end;
  }
  return failed ? 0 : rows;
}

}  // namespace recengine::triton
