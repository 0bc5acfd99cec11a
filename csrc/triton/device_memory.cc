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
using StreamSynchronize = int (*)(Stream);
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

// The thread's, for as long as the process lives. Not the legacy default stream: while another
// model captures a graph, that one may not be used, and the graph would be spoilt.
Stream thread_stream() {
  static thread_local Stream stream = [] {
    static const auto create = find<StreamCreate>("cudaStreamCreateWithFlags");
    Stream made = nullptr;
    require_cuda(create(&made, kNonBlocking), "cudaStreamCreateWithFlags");
    return made;
  }();
  return stream;
}

}  // namespace

void copy_to_host(void* to, const void* from, uint64_t bytes, bool is_gpu) {
  if (bytes == 0) return;
  if (!is_gpu) {
    std::memcpy(to, from, bytes);
    return;
  }
  static const auto copy = find<MemcpyAsync>("cudaMemcpyAsync");
  static const auto wait = find<StreamSynchronize>("cudaStreamSynchronize");
  const Stream stream = thread_stream();
  require_cuda(copy(to, from, bytes, kDeviceToHost, stream), "cudaMemcpyAsync from the GPU");
  require_cuda(wait(stream), "cudaStreamSynchronize");
}

}  // namespace recengine::triton
