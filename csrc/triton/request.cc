#include "triton/request.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>

#include "triton/device_memory.h"

namespace recengine::triton {
namespace {

constexpr uint32_t kRank = 2;  // every tensor is [batch, width]
constexpr uint64_t kNsPerUs = 1000;
constexpr uint64_t kLongestTimeoutUs = uint64_t{1'000'000} * 3600 * 24;
constexpr uint64_t kNever = std::numeric_limits<uint64_t>::max();

template <typename T>
constexpr TRITONSERVER_DataType kTypeOf = TRITONSERVER_TYPE_INVALID;
template <>
constexpr TRITONSERVER_DataType kTypeOf<int64_t> = TRITONSERVER_TYPE_INT64;
template <>
constexpr TRITONSERVER_DataType kTypeOf<int32_t> = TRITONSERVER_TYPE_INT32;
template <>
constexpr TRITONSERVER_DataType kTypeOf<float> = TRITONSERVER_TYPE_FP32;

struct InputInfo {
  TRITONSERVER_DataType type = TRITONSERVER_TYPE_INVALID;
  const int64_t* shape = nullptr;
  uint32_t rank = 0;
  uint64_t bytes = 0;
  uint32_t buffers = 0;
};

InputInfo info_of(TRITONBACKEND_Input* input) {
  InputInfo info;
  const char* name = nullptr;
  require(TRITONBACKEND_InputProperties(input, &name, &info.type, &info.shape, &info.rank,
                                        &info.bytes, &info.buffers));
  return info;
}

std::string shape_text(const InputInfo& info) {
  std::string text = "[";
  for (uint32_t i = 0; i < info.rank; ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(info.shape[i]);
  }
  return text + "]";
}

// Type, rank and size, the last by checked multiplication: a shape is never trusted against bytes.
template <typename T>
void check_input(const InputInfo& info, const std::string& what) {
  if (info.type != kTypeOf<T>) {
    throw InputError(what + ": expected " + TRITONSERVER_DataTypeString(kTypeOf<T>) + ", found " +
                     TRITONSERVER_DataTypeString(info.type));
  }
  if (info.rank != kRank) {
    throw InputError(what + ": expected shape [batch, width], found " + shape_text(info));
  }
  if (info.shape[0] < 1 || info.shape[1] < 0) {
    throw InputError(what + ": expected at least 1 row and no negative width, found shape " +
                     shape_text(info));
  }
  uint64_t values = 0;
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(static_cast<uint64_t>(info.shape[0]),
                             static_cast<uint64_t>(info.shape[1]), &values) ||
      __builtin_mul_overflow(values, uint64_t{sizeof(T)}, &bytes) || bytes != info.bytes) {
    throw InputError(what + ": expected the bytes of shape " + shape_text(info) + ", found " +
                     std::to_string(info.bytes) + " bytes");
  }
}

struct Buffer {
  const char* data = nullptr;
  uint64_t bytes = 0;
  int device = kHost;
};

Buffer buffer_of(TRITONBACKEND_Input* input, uint32_t index) {
  const void* data = nullptr;
  uint64_t bytes = 0;
  TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
  int64_t memory_id = 0;
  require(TRITONBACKEND_InputBuffer(input, index, &data, &bytes, &memory, &memory_id));
  const bool on_gpu = memory == TRITONSERVER_MEMORY_GPU;
  return {static_cast<const char*>(data), bytes, on_gpu ? static_cast<int>(memory_id) : kHost};
}

template <typename T>
const T* gather(TRITONBACKEND_Input* input, const InputInfo& info, const std::string& what,
                std::vector<T>& storage) {
  storage.resize(info.bytes / sizeof(T));
  char* const begin = reinterpret_cast<char*>(storage.data());
  uint64_t filled = 0;
  for (uint32_t i = 0; i < info.buffers; ++i) {
    const Buffer buffer = buffer_of(input, i);
    if (buffer.bytes > info.bytes - filled) break;
    copy_to_host(begin + filled, buffer.data, buffer.bytes, buffer.device != kHost);
    filled += buffer.bytes;
  }
  if (filled != info.bytes) {
    throw InputError(what + ": expected " + std::to_string(info.bytes) +
                     " bytes in its buffers, found another count");
  }
  return storage.data();
}

template <typename T>
InputTensor<T> read_input(TRITONBACKEND_Request* request, const std::string& model,
                          const char* name, int device = kHost) {
  const std::string what = "[" + model + "] " + name;
  TRITONBACKEND_Input* input = nullptr;
  require(TRITONBACKEND_RequestInput(request, name, &input));
  const InputInfo info = info_of(input);
  check_input<T>(info, what);

  InputTensor<T> tensor;
  const T* data = nullptr;
  if (info.buffers == 1) {
    const Buffer buffer = buffer_of(input, 0);
    const bool aligned = reinterpret_cast<uintptr_t>(buffer.data) % alignof(T) == 0;
    const bool whole = buffer.bytes == info.bytes;
    const bool usable = buffer.device == kHost || device != kHost;
    if (aligned && whole && usable) {
      data = reinterpret_cast<const T*>(buffer.data);
      tensor.device = buffer.device;
    }
  }
  if (data == nullptr) data = gather(input, info, what, tensor.gathered);
  tensor.view = {data, info.shape[0], info.shape[1]};
  return tensor;
}

// The batch size that a request claims; read() checks it.
int64_t claimed_rows(TRITONBACKEND_Request* request) {
  TRITONBACKEND_Input* input = nullptr;
  require(TRITONBACKEND_RequestInput(request, "ids", &input));
  const InputInfo info = info_of(input);
  return info.rank == 0 ? 1 : info.shape[0];
}

const char* type_name(TRITONSERVER_ParameterType type) {
  switch (type) {
    case TRITONSERVER_PARAMETER_STRING:
      return "a string";
    case TRITONSERVER_PARAMETER_BOOL:
      return "a bool";
    case TRITONSERVER_PARAMETER_DOUBLE:
      return "a double";
    default:
      return "another type";
  }
}

int64_t read_int_parameter(TRITONSERVER_ParameterType type, const void* value,
                           const std::string& what, int64_t maximum) {
  const std::string expected = what + ": expected 1 to " + std::to_string(maximum) + ", found ";
  if (type != TRITONSERVER_PARAMETER_INT) throw InputError(expected + type_name(type));
  const int64_t number = *static_cast<const int64_t*>(value);
  if (number < 1 || number > maximum) throw InputError(expected + std::to_string(number));
  return number;
}

// Where an output should lie: a GPU's with the stage that reads it, the last one's with the
// network.
TRITONSERVER_MemoryType wanted_memory(int device, bool last) {
  if (device == kHost) return TRITONSERVER_MEMORY_CPU;
  return last ? TRITONSERVER_MEMORY_CPU_PINNED : TRITONSERVER_MEMORY_GPU;
}

// Writes `rows` rows from `first_row` on, of each the first values that dims [rows, ...] ask for.
// `type` is where they should lie.
template <typename T>
void put_output(TRITONBACKEND_Response* response, const char* name, const Matrix<T>& batch,
                int64_t first_row, std::initializer_list<int64_t> dims, CallMemory& memory,
                TRITONSERVER_MemoryType type) {
  const auto rank = static_cast<uint32_t>(dims.size());
  TRITONBACKEND_Output* output = nullptr;
  require(TRITONBACKEND_ResponseOutput(response, &output, name, kTypeOf<T>, dims.begin(), rank));
  const int64_t rows = *dims.begin();
  int64_t width = 1;
  for (const int64_t* dim = dims.begin() + 1; dim != dims.end(); ++dim) width *= *dim;
  const int64_t row_bytes = width * int64_t{sizeof(T)};
  void* buffer = nullptr;
  int64_t memory_id = type == TRITONSERVER_MEMORY_GPU ? memory.device() : 0;
  require(TRITONBACKEND_OutputBuffer(output, &buffer, static_cast<uint64_t>(rows * row_bytes),
                                     &type, &memory_id));
  if (type == TRITONSERVER_MEMORY_GPU && memory.device() == kHost) {
    throw StatusError(TRITONSERVER_ERROR_UNSUPPORTED,
                      std::string(name) + ": expected a CPU buffer, found GPU memory");
  }
  memory.copy_rows(buffer, row_bytes, batch.row(first_row), batch.cols * int64_t{sizeof(T)}, rows);
}

uint64_t timeout_ns(TRITONBACKEND_Request* request, const ModelConfig& config) noexcept {
  uint64_t timeout_us = 0;
  warn(TRITONBACKEND_InferenceRequestTimeoutMicroseconds(request, &timeout_us));
  if (timeout_us == 0) timeout_us = static_cast<uint64_t>(config.default_timeout_us);
  return std::min(timeout_us, kLongestTimeoutUs) * kNsPerUs;
}

// When the step before said that the request is to be answered; kNever where none did.
uint64_t told_deadline_ns(TRITONBACKEND_Request* request, const ModelConfig& config) {
  TRITONBACKEND_Input* input = nullptr;
  const ErrorPtr none(TRITONBACKEND_RequestInput(request, kDeadline, &input));
  if (none != nullptr) return kNever;
  const InputTensor<int64_t> rows = read_input<int64_t>(request, config.name, kDeadline);
  const int64_t* const end = rows.view.data + rows.view.rows * rows.view.cols;
  const int64_t* const earliest = std::min_element(rows.view.data, end);
  return earliest == end ? kNever : static_cast<uint64_t>(std::max<int64_t>(*earliest, 0));
}

}  // namespace

Request::Request(Instance& instance, TRITONBACKEND_Request* handle,
                 const ModelConfig& config) noexcept
    : instance_(instance), handle_(handle), arrival_ns_(now_ns()) {
  instance_.pending.fetch_add(1);
  is_warmup_ = instance.warmups_left > 0;
  if (is_warmup_) --instance.warmups_left;
  deadline_ns_ = is_warmup_ ? kNever : arrival_ns_ + timeout_ns(handle, config);
  try {
    rows_ = std::clamp<int64_t>(claimed_rows(handle), 1, config.max_batch_rows);
    if (config.reads_deadline && !is_warmup_) {
      deadline_ns_ = std::min(deadline_ns_, told_deadline_ns(handle, config));
    }
  } catch (...) {
    rows_ = 1;
    is_malformed_ = true;  // read() will say in what
  }
}

Request::~Request() {
  if (handle_ != nullptr) fail(TRITONSERVER_ERROR_INTERNAL, "request was dropped", {});
  instance_.pending.fetch_sub(1);
}

bool Request::is_cancelled() const noexcept {
  bool cancelled = false;
  warn(TRITONBACKEND_RequestIsCancelled(handle_, &cancelled));
  return cancelled;
}

void Request::read(const ModelConfig& config, const Schema& schema, const GraphWidths& widths,
                   int device) {
  const StageRequest& wanted = request_of(config.stage);
  read_parameters(config, schema);
  ids_ = read_input<int64_t>(handle_, config.name, "ids");
  lengths_ = read_input<int32_t>(handle_, config.name, "lengths");
  rows_ = ids_.view.rows;
  dense_.view = {nullptr, rows_, 0};
  if (!schema.dense_features.empty()) {
    dense_ = read_input<float>(handle_, config.name, "dense");
  }
  if (wanted.candidates) {
    candidates_ = read_input<int64_t>(handle_, config.name, "candidates", device);
    candidate_scores_ = read_input<float>(handle_, config.name, "candidate_scores", device);
  }
  if (wanted.graph_output != nullptr) {
    graph_output_ = read_input<float>(handle_, config.name, wanted.graph_output, device);
  }
  if (is_malformed_ && config.reads_deadline) told_deadline_ns(handle_, config);
  check(config, schema, widths);
}

void Request::check(const ModelConfig& config, const Schema& schema,
                    const GraphWidths& widths) const {
  const bool on_host = candidates_.device == kHost && candidate_scores_.device == kHost;
  const CandidateBatch candidates = {candidates_.view, candidate_scores_.view};
  switch (config.stage) {
    case Stage::kRetrievalLookup:
    case Stage::kRetrieval:
      return recengine::check(schema, users());
    case Stage::kTopK:
      return recengine::check(schema, users(), graph_output_.view, widths.user);
    case Stage::kRankingLookup:
    case Stage::kRanking:
      return recengine::check(schema, users(), candidates, on_host);
    case Stage::kOrder:
      return recengine::check(schema, users(), candidates, graph_output_.view, on_host);
  }
}

void Request::read_parameters(const ModelConfig& config, const Schema& schema) {
  const StageRequest& stage = request_of(config.stage);
  if (stage.count == nullptr) return;
  const std::string wanted = stage.count;
  k_ = stage.candidates ? schema.k : schema.num_candidates;
  uint32_t count = 0;
  require(TRITONBACKEND_RequestParameterCount(handle_, &count));
  for (uint32_t i = 0; i < count; ++i) {
    const char* key = nullptr;
    TRITONSERVER_ParameterType type = TRITONSERVER_PARAMETER_INT;
    const void* value = nullptr;
    require(TRITONBACKEND_RequestParameter(handle_, i, &key, &type, &value));
    if (key != wanted) continue;
    k_ = read_int_parameter(type, value, "[" + config.name + "] parameter " + wanted,
                            schema.max_candidates);
  }
}

void Request::answer(const Answer& batch, int64_t first_row, CallMemory& memory) noexcept {
  try {
    copy_outputs(batch, first_row, memory);
  } catch (...) {
    error_ = current_error(TRITONSERVER_ERROR_INTERNAL);
  }
}

void Request::copy_outputs(const Answer& batch, int64_t first_row, CallMemory& memory) {
  TRITONBACKEND_Response* response = nullptr;
  require(TRITONBACKEND_ResponseNew(&response, handle_));
  response_.reset(response);
  uint32_t count = 0;
  require(TRITONBACKEND_RequestOutputCount(handle_, &count));
  const int64_t slots = batch.inputs.item_scores.cols;
  for (uint32_t i = 0; i < count; ++i) {
    const char* name = nullptr;
    require(TRITONBACKEND_RequestOutputName(handle_, i, &name));
    const auto put = [&](const auto& rows, std::initializer_list<int64_t> dims) {
      const auto type = wanted_memory(memory.device(), batch.last);
      put_output(response, name, rows, first_row, dims, memory, type);
    };
    if (std::strcmp(name, "item_ids") == 0) {
      put(batch.top.item_ids, {rows_, k_});
    } else if (std::strcmp(name, "scores") == 0) {
      put(batch.top.scores, {rows_, k_});
    } else if (std::strcmp(name, "sparse") == 0) {
      put(batch.inputs.sparse, {rows_, batch.inputs.sparse.cols});
    } else if (std::strcmp(name, "items") == 0) {
      const int64_t dim = batch.inputs.items.cols;
      const Matrix<float> items(batch.inputs.items.data, batch.inputs.item_scores.rows,
                                slots * dim);
      put(items, {rows_, slots, dim});
    } else if (std::strcmp(name, kDeadline) == 0) {
      constexpr uint64_t kLatest = std::numeric_limits<int64_t>::max();
      deadlines_.assign(static_cast<size_t>(rows_),
                        static_cast<int64_t>(std::min(deadline_ns_, kLatest)));
      // Read where requests are queued, before anything runs on a GPU.
      put_output<int64_t>(response, name, {deadlines_.data(), rows_, 1}, 0, {rows_, 1}, memory,
                          TRITONSERVER_MEMORY_CPU);
    } else {
      put(batch.inputs.item_scores, {rows_, slots});
    }
  }
}

void Request::send(const Times& times) noexcept {
  if (error_ != nullptr) {
    fail(std::move(error_), times);
    return;
  }
  report(true, times);
  warn(TRITONBACKEND_ResponseSend(response_.release(), TRITONSERVER_RESPONSE_COMPLETE_FINAL,
                                  nullptr));
  release();
}

void Request::fail(TRITONSERVER_Error_Code code, const std::string& message,
                   const Times& times) noexcept {
  fail(ErrorPtr(TRITONSERVER_ErrorNew(code, message.c_str())), times);
}

void Request::fail(ErrorPtr error, const Times& times) noexcept {
  response_.reset();
  report(false, times);
  TRITONBACKEND_Response* response = nullptr;
  warn(TRITONBACKEND_ResponseNew(&response, handle_));
  if (response != nullptr) {
    warn(TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, error.get()));
  }
  release();
}

void Request::report(bool success, const Times& times) const noexcept {
  const uint64_t end_ns = now_ns();
  const uint64_t start_ns = times.start_ns == 0 ? end_ns : times.start_ns;
  const uint64_t compute_start_ns = times.compute_start_ns == 0 ? start_ns : times.compute_start_ns;
  const uint64_t compute_end_ns =
      times.compute_end_ns == 0 ? compute_start_ns : times.compute_end_ns;
  warn(TRITONBACKEND_ModelInstanceReportStatistics(instance_.handle, handle_, success, start_ns,
                                                   compute_start_ns, compute_end_ns, end_ns));
}

void Request::release() noexcept {
  warn(TRITONBACKEND_RequestRelease(handle_, TRITONSERVER_REQUEST_RELEASE_ALL));
  handle_ = nullptr;
}

}  // namespace recengine::triton
