// The floor of every serving number: a backend that answers its INT64 tensor `x` as `y` and does
// nothing else. What it costs is gRPC and Triton.
#include <chrono>
#include <cstring>

#include "triton/api.h"

namespace {

uint64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

TRITONSERVER_Error* copy(TRITONBACKEND_Request* request, TRITONBACKEND_Response* response) {
  TRITONBACKEND_Input* input = nullptr;
  if (auto* error = TRITONBACKEND_RequestInput(request, "x", &input)) return error;
  TRITONSERVER_DataType type;
  const int64_t* shape = nullptr;
  uint32_t dims = 0, num_buffers = 0;
  uint64_t num_bytes = 0;
  if (auto* error = TRITONBACKEND_InputProperties(input, nullptr, &type, &shape, &dims, &num_bytes,
                                                  &num_buffers)) {
    return error;
  }
  TRITONBACKEND_Output* output = nullptr;
  if (auto* error = TRITONBACKEND_ResponseOutput(response, &output, "y", type, shape, dims)) {
    return error;
  }
  void* target = nullptr;
  TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
  int64_t memory_id = 0;
  if (auto* error = TRITONBACKEND_OutputBuffer(output, &target, num_bytes, &memory, &memory_id)) {
    return error;
  }
  uint64_t written = 0;
  for (uint32_t i = 0; i < num_buffers; ++i) {
    const void* source = nullptr;
    uint64_t size = 0;
    if (auto* error = TRITONBACKEND_InputBuffer(input, i, &source, &size, &memory, &memory_id)) {
      return error;
    }
    if (size > num_bytes - written) {
      return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INVALID_ARG, "[identity] x: too many bytes");
    }
    std::memcpy(static_cast<char*>(target) + written, source, size);
    written += size;
  }
  return nullptr;
}

void answer(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request) {
  const uint64_t start = now_ns();
  TRITONBACKEND_Response* response = nullptr;
  bool succeeded = false;
  if (auto* error = TRITONBACKEND_ResponseNew(&response, request)) {
    TRITONSERVER_ErrorDelete(error);
  } else {
    auto* failed = copy(request, response);
    succeeded = failed == nullptr;
    TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, failed);
    if (failed != nullptr) TRITONSERVER_ErrorDelete(failed);
  }
  const uint64_t end = now_ns();
  TRITONBACKEND_ModelInstanceReportStatistics(instance, request, succeeded, start, start, end, end);
  TRITONBACKEND_RequestRelease(request, TRITONSERVER_REQUEST_RELEASE_ALL);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) TRITONSERVER_Error*
TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                   TRITONBACKEND_Request** requests, const uint32_t request_count) {
  const uint64_t start = now_ns();
  for (uint32_t i = 0; i < request_count; ++i) answer(instance, requests[i]);
  const uint64_t end = now_ns();
  return TRITONBACKEND_ModelInstanceReportBatchStatistics(instance, request_count, start, start,
                                                          end, end);
}
