#include "triton/device_memory.h"

#include <dlfcn.h>

#include <cstddef>
#include <cstring>
#include <string>

#include "triton/status.h"

namespace recengine::triton {
namespace {

// Of the CUDA runtime, by its types' sizes: cudaError_t is an int, 0 without error.
using Stream = void*;
using StreamCreate = int (*)(Stream*, unsigned);
using MemcpyAsync = int (*)(void*, const void*, size_t, int, Stream);
using StreamCall = int (*)(Stream);
constexpr unsigned kNonBlocking = 1;
constexpr int kDeviceToHost = 2;

void require_cuda(int status, const char* call) {
  if (status == 0) return;
  throw StatusError(TRITONSERVER_ERROR_INTERNAL,
                    std::string("recengine: ") + call + ": error " + std::to_string(status));
}

template <typename Function>
Function find(const char* name) {
  const auto found = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
  if (found == nullptr) {
    throw StatusError(TRITONSERVER_ERROR_UNSUPPORTED,
                      "recengine: expected CPU memory, found GPU memory in a server without CUDA");
  }
  return found;
}

// While another thread captures a graph, what could disturb that is refused to this one, and spoils
// the graph, unless the thread says that it does not disturb.
class RelaxedCapture {
 public:
  RelaxedCapture() : exchange_(find<Exchange>("cudaThreadExchangeStreamCaptureMode")) {
    exchange_(&mode_);
  }
  ~RelaxedCapture() { exchange_(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  using Exchange = int (*)(int*);

  Exchange exchange_;
  int mode_ = 2;  // cudaStreamCaptureModeRelaxed
};

// A thread's own. Not the legacy default stream: while a blocking stream captures, that one may not
// be used.
class OwnStream {
 public:
  OwnStream() {
    require_cuda(find<StreamCreate>("cudaStreamCreateWithFlags")(&stream_, kNonBlocking),
                 "cudaStreamCreateWithFlags");
  }
  ~OwnStream() { destroy_(stream_); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;

  void copy(void* to, const void* from, uint64_t bytes) {
    static const auto copy = find<MemcpyAsync>("cudaMemcpyAsync");
    static const auto wait = find<StreamCall>("cudaStreamSynchronize");
    require_cuda(copy(to, from, bytes, kDeviceToHost, stream_), "cudaMemcpyAsync from the GPU");
    require_cuda(wait(stream_), "cudaStreamSynchronize");
  }

 private:
  StreamCall destroy_ = find<StreamCall>("cudaStreamDestroy");
  Stream stream_ = nullptr;
};

}  // namespace

void copy_to_host(void* to, const void* from, uint64_t bytes, bool is_gpu) {
  if (bytes == 0) return;
  if (!is_gpu) {
    std::memcpy(to, from, bytes);
    return;
  }
  const RelaxedCapture relaxed;
  static thread_local OwnStream stream;
  stream.copy(to, from, bytes);
}

}  // namespace recengine::triton
