// What of the CUDA runtime a tritonserver 24.10 and its Python backend call besides when our tests
// use them: preloaded, this library makes them see the emulated GPU. Kernels of their own and
// copies between GPUs are not there. They were compiled with CUDA 12's headers.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <string>

#include "cuda_runtime_api.h"
#include "device_memory.h"

namespace {

// cudaDeviceProp of CUDA 12, as far as the server reads it.
struct ServerDeviceProp {
  char name[256];
  char ids[32];
  size_t totalGlobalMem;
  char limits[64];
  int major;
  int minor;
};
static_assert(offsetof(ServerDeviceProp, totalGlobalMem) == 288);
static_assert(offsetof(ServerDeviceProp, major) == 360);

// Of memory that another process has on the GPU. Here that is a file, whose path this is; what it
// holds is copied as it is opened.
struct ServerIpcMemHandle {
  char path[64];
};

std::mutex opened_mutex;
std::map<void*, size_t> opened;  // their bytes

// Of the driver: the server asks for the size alone.
int get_address_range(uintptr_t*, size_t* bytes, uintptr_t pointer) {
  const std::lock_guard<std::mutex> lock(opened_mutex);
  const auto found = opened.find(reinterpret_cast<void*>(pointer));
  if (found == opened.end()) return cudaErrorInvalidValue;
  *bytes = found->second;
  return cudaSuccess;
}
int get_error_string(int, const char** text) {
  *text = "invalid argument";
  return cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceProperties_v2(ServerDeviceProp* properties, int device) {
  cudaDeviceProp known;
  const cudaError_t status = cudaGetDeviceProperties(&known, device);
  if (status != cudaSuccess) return status;
  std::memcpy(properties->name, known.name, sizeof known.name);
  properties->totalGlobalMem = known.totalGlobalMem;
  properties->major = known.major;
  properties->minor = known.minor;
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaErrorInvalidDevice; }
cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int) {
  std::snprintf(id, static_cast<size_t>(size), "0000:00:00.0");
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = *greatest = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, 0); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaStreamGetFlags(cudaStream_t, unsigned* flags) {
  *flags = 0;
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t, void (*function)(void*), void* data) {
  function(data);
  return cudaSuccess;
}
cudaError_t cudaMallocManaged(void** pointer, size_t, unsigned) {
  *pointer = nullptr;
  return cudaErrorMemoryAllocation;
}
cudaError_t cudaMemPrefetchAsync(const void*, size_t, int, cudaStream_t) {
  return cudaErrorInvalidValue;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  cudaDeviceProp properties;
  cudaGetDeviceProperties(&properties, 0);
  *total = properties.totalGlobalMem;
  *free = *total - cuda_emulation::device_bytes_taken();
  return cudaSuccess;
}
cudaError_t cudaIpcOpenMemHandle(void** pointer, ServerIpcMemHandle handle, unsigned) {
  std::ifstream file(handle.path, std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(file), {}};
  *pointer = content.empty() ? nullptr : cuda_emulation::take_device_memory(content.size());
  if (*pointer == nullptr) return cudaErrorInvalidValue;
  const cuda_emulation::DeviceAccess access;
  std::memcpy(*pointer, content.data(), content.size());
  const std::lock_guard<std::mutex> lock(opened_mutex);
  opened[*pointer] = content.size();
  return cudaSuccess;
}
cudaError_t cudaIpcCloseMemHandle(void* pointer) {
  const std::lock_guard<std::mutex> lock(opened_mutex);
  opened.erase(pointer);
  return cuda_emulation::give_back_device_memory(pointer) ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaGetDriverEntryPoint(const char* symbol, void** function, unsigned long long, int*) {
  const std::string name = symbol;
  *function = name == "cuMemGetAddressRange" ? reinterpret_cast<void*>(get_address_range)
              : name == "cuGetErrorString"   ? reinterpret_cast<void*>(get_error_string)
                                             : nullptr;
  return *function != nullptr ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return cudaMemsetAsync(to, value, bytes, nullptr);
}

}  // extern "C"
