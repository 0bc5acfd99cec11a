#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <string>

#include "recengine/error.h"
#include "triton/api.h"

namespace recengine::triton {

// An error with the code that the client sees as its gRPC status.
class StatusError : public RecengineError {
 public:
  StatusError(TRITONSERVER_Error_Code code, const std::string& message)
      : RecengineError(message), code_(code) {}
  TRITONSERVER_Error_Code code() const { return code_; }

 private:
  TRITONSERVER_Error_Code code_;
};

struct ErrorDeleter {
  void operator()(TRITONSERVER_Error* error) const { TRITONSERVER_ErrorDelete(error); }
};
using ErrorPtr = std::unique_ptr<TRITONSERVER_Error, ErrorDeleter>;

// Throws StatusError with the code and message of what a server function returned, if an error.
void require(TRITONSERVER_Error* error);

// Logs what a server function returned, if an error: for calls whose failure changes nothing.
void warn(TRITONSERVER_Error* error) noexcept;

void log_info(const std::string& message) noexcept;

// The error of what is being caught: StatusError keeps its code, InputError is INVALID_ARG, and
// without memory the server is UNAVAILABLE.
// Call inside a catch block.
ErrorPtr current_error(TRITONSERVER_Error_Code otherwise) noexcept;

// Runs an entry point: nothing thrown crosses the C ABI.
template <typename Body>
TRITONSERVER_Error* guarded(Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (...) {
    return current_error(TRITONSERVER_ERROR_INTERNAL).release();
  }
}

// steady_clock, the clock of Triton's statistics.
uint64_t now_ns();

}  // namespace recengine::triton
