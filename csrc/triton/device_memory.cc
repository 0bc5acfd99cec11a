#include "triton/device_memory.h"

#include <dlfcn.h>

#include <cstddef>
#include <cstring>
#include <string>

#include "triton/status.h"

namespace recengine::triton {
namespace {

// cudaMemcpy and cudaMemcpyDeviceToHost; cudaError_t is an int, 0 without error.
using Memcpy = int (*)(void*, const void*, size_t, int);
constexpr int kDeviceToHost = 2;

Memcpy find_memcpy() {
  static const auto found = reinterpret_cast<Memcpy>(dlsym(RTLD_DEFAULT, "cudaMemcpy"));
  return found;
}

}  // namespace

void copy_to_host(void* to, const void* from, uint64_t bytes, bool is_gpu) {
  if (bytes == 0) return;
  if (!is_gpu) {
    std::memcpy(to, from, bytes);
    return;
  }
  const Memcpy copy = find_memcpy();
  if (copy == nullptr) {
    throw StatusError(TRITONSERVER_ERROR_UNSUPPORTED,
                      "recengine: expected CPU memory, found GPU memory in a server without CUDA");
  }
  const int status = copy(to, from, bytes, kDeviceToHost);
  if (status != 0) {
    throw StatusError(TRITONSERVER_ERROR_INTERNAL,
                      "recengine: cudaMemcpy from the GPU: error " + std::to_string(status));
  }
}

}  // namespace recengine::triton
