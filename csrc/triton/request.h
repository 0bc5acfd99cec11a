#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "recengine/cuda.h"
#include "recengine/engine.h"
#include "triton/api.h"
#include "triton/call_memory.h"
#include "triton/config.h"
#include "triton/status.h"

namespace recengine::triton {

class Model;

// What the server runs requests on. Thin: a model computes, an instance is what statistics name.
struct Instance {
  TRITONBACKEND_ModelInstance* handle = nullptr;
  Model* model = nullptr;           // on the instance's device
  int64_t warmups_left = 0;         // the first requests are the server's own
  std::atomic<int64_t> pending{0};  // requests taken and not yet released
};

// Start of the work on a batch and of its computation, and the end of that; steady_clock ns.
struct Times {
  uint64_t start_ns = 0;
  uint64_t compute_start_ns = 0;
  uint64_t compute_end_ns = 0;
};

// What a call answers, rows of all its requests; borrowed. Its stage has some of them.
struct Answer {
  Recommendations top;  // best first: a request takes its first k() columns
  RankerInputs inputs;  // of a dense graph; the retrieval graph reads `sparse` alone
  bool last = false;    // it goes to the network, and not to another stage
};

struct ResponseDeleter {
  void operator()(TRITONBACKEND_Response* response) const {
    warn(TRITONBACKEND_ResponseDelete(response));
  }
};
using ResponsePtr = std::unique_ptr<TRITONBACKEND_Response, ResponseDeleter>;

// One input, read where Triton holds it; copied to the host only when it comes in pieces,
// unaligned, or in memory of a GPU where the engine is on none.
template <typename T>
struct InputTensor {
  Matrix<const T> view;
  int device = kHost;  // where it lies
  std::vector<T> gathered;
};

// A request that the backend owns. It is answered, counted and released exactly once, by send(),
// by fail() or, should both be missed, by the destructor.
class Request {
 public:
  // Takes `handle`. Cheap: the inputs stay unread.
  Request(Instance& instance, TRITONBACKEND_Request* handle, const ModelConfig& config) noexcept;
  ~Request();
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;

  Instance& instance() const { return instance_; }
  uint64_t arrival_ns() const { return arrival_ns_; }
  uint64_t deadline_ns() const { return deadline_ns_; }
  bool is_warmup() const { return is_warmup_; }  // never shed: the server would not load the model
  int64_t rows() const { return rows_; }  // as the shape of `ids` says, within 1 .. max_batch_rows
  bool is_cancelled() const noexcept;

  // Reads and checks everything. Throws InputError or StatusError; then only fail() may follow.
  // For an engine on a device, what the stage before gave may lie on a GPU: its values are not
  // looked at.
  void read(const ModelConfig& config, const Schema& schema, const GraphWidths& widths, int device);

  // Valid after read(); candidates and the graph's output are on the device or on the host.
  WireUsers users() const { return {ids_.view, lengths_.view, dense_.view}; }
  const InputTensor<int64_t>& candidates() const { return candidates_; }
  const InputTensor<float>& candidate_scores() const { return candidate_scores_; }
  const InputTensor<float>& graph_output() const { return graph_output_; }
  int64_t k() const { return k_; }  // items of the answer; 0 when the stage answers none

  // Copies rows first_row .. first_row + rows() - 1 to where the answer goes.
  void answer(const Answer& batch, int64_t first_row, CallMemory& memory) noexcept;

  // Sends what answer() copied, or why it could not, when the memory has finished.
  void send(const Times& times) noexcept;

  void fail(ErrorPtr error, const Times& times) noexcept;
  void fail(TRITONSERVER_Error_Code code, const std::string& message, const Times& times) noexcept;

 private:
  void read_parameters(const ModelConfig& config, const Schema& schema);
  void check(const ModelConfig& config, const Schema& schema, const GraphWidths& widths) const;
  void copy_outputs(const Answer& batch, int64_t first_row, CallMemory& memory);
  // Before the answer is sent: who has it finds it counted.
  void report(bool success, const Times& times) const noexcept;
  void release() noexcept;

  Instance& instance_;
  TRITONBACKEND_Request* handle_;  // null once released
  uint64_t arrival_ns_;
  uint64_t deadline_ns_ = 0;
  bool is_warmup_ = false;
  bool is_malformed_ = false;
  int64_t rows_ = 1;
  int64_t k_ = 0;
  InputTensor<int64_t> ids_;
  InputTensor<int32_t> lengths_;
  InputTensor<float> dense_;
  InputTensor<int64_t> candidates_;
  InputTensor<float> candidate_scores_;
  InputTensor<float> graph_output_;
  std::vector<int64_t> deadlines_;  // of each row, where the answer says them
  ResponsePtr response_;
  ErrorPtr error_;  // instead of a response
};

}  // namespace recengine::triton
