#include "triton/status.h"

#include <chrono>
#include <new>

namespace recengine::triton {

void require(TRITONSERVER_Error* error) {
  if (error == nullptr) return;
  const ErrorPtr owned(error);
  throw StatusError(TRITONSERVER_ErrorCode(error), TRITONSERVER_ErrorMessage(error));
}

void warn(TRITONSERVER_Error* error) noexcept {
  if (error == nullptr) return;
  const ErrorPtr owned(error);
  const ErrorPtr unlogged(TRITONSERVER_LogMessage(TRITONSERVER_LOG_WARN, __FILE__, __LINE__,
                                                  TRITONSERVER_ErrorMessage(error)));
}

void log_info(const std::string& message) noexcept {
  const ErrorPtr unlogged(
      TRITONSERVER_LogMessage(TRITONSERVER_LOG_INFO, __FILE__, __LINE__, message.c_str()));
}

ErrorPtr current_error(TRITONSERVER_Error_Code otherwise) noexcept {
  try {
    throw;
  } catch (const StatusError& error) {
    return ErrorPtr(TRITONSERVER_ErrorNew(error.code(), error.what()));
  } catch (const InputError& error) {
    return ErrorPtr(TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INVALID_ARG, error.what()));
  } catch (const DeviceMemoryError& error) {
    return ErrorPtr(TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_UNAVAILABLE, error.what()));
  } catch (const std::bad_alloc&) {
    return ErrorPtr(TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_UNAVAILABLE, "out of memory"));
  } catch (const std::exception& error) {
    return ErrorPtr(TRITONSERVER_ErrorNew(otherwise, error.what()));
  } catch (...) {
    return ErrorPtr(TRITONSERVER_ErrorNew(otherwise, "unknown exception"));
  }
}

uint64_t now_ns() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::nanoseconds(since).count());
}

}  // namespace recengine::triton
