#include <cstdint>
#include <map>
#include <mutex>

#include "cuda/device_buffer.h"
#include "cuda/launch.h"
#include "cuda/owned.h"
#include "cuda/relaxed_capture.h"
#include "cuda/stream.h"
#include "recengine/cuda.h"
#include "recengine/error.h"

namespace recengine {
namespace cuda {
namespace {

constexpr uint64_t kKeptBytes = uint64_t{2} << 30;

cudaMemPool_t make_pool(int device) {
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  cudaMemPool_t pool;
  const RelaxedCapture relaxed;
  RECENGINE_CUDA_CHECK(cudaMemPoolCreate(&pool, &properties));
  uint64_t kept = kKeptBytes;
  RECENGINE_CUDA_CHECK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept));
  return pool;
}

// Of the current device. The default pool gives its memory back whenever a stream is waited for.
cudaMemPool_t current_pool() {
  static std::mutex mutex;
  static std::map<int, cudaMemPool_t> pools;
  int device = 0;
  RECENGINE_CUDA_CHECK(cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = pools.find(device);
  return found != pools.end() ? found->second : pools[device] = make_pool(device);
}

}  // namespace

void* allocate(int64_t bytes, cudaStream_t stream) {
  void* data = nullptr;
  if (bytes == 0) return data;
  RECENGINE_CUDA_CHECK(
      cudaMallocFromPoolAsync(&data, static_cast<size_t>(bytes), current_pool(), stream));
  return data;
}

}  // namespace cuda

using cuda::as_stream;
using cuda::owned;

namespace {

// Which capture the stream is part of; 0: of none that goes on.
unsigned long long capture_of(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long capture = 0;
  const cudaError_t error = cudaStreamGetCaptureInfo(stream, &status, &capture);
  if (error == cudaErrorStreamCaptureImplicit) {
    throw InputError(
        "expected arrays of other streams than the legacy default stream, while a blocking "
        "stream is captured");
  }
  cuda::check(error, "cudaStreamGetCaptureInfo");
  return status == cudaStreamCaptureStatusNone ? 0 : capture;
}

// Whether nothing on the device can still use memory of a stream that does not take it back.
bool is_idle_after_wait(cudaStream_t stream) {
  return !cuda::is_captured(stream) && cudaDeviceSynchronize() == cudaSuccess;
}

}  // namespace

std::shared_ptr<void> allocate_on_device(int64_t bytes, int device, CudaStream stream) {
  const cuda::DeviceGuard guard(device);
  return owned(cuda::allocate(bytes, as_stream(stream)), device, [=](void* data) {
    if (cudaFreeAsync(data, as_stream(stream)) == cudaSuccess) return;
    // The stream is gone, or captured: then what it was captured for may still read it.
    if (is_idle_after_wait(as_stream(stream))) cudaFree(data);
  });
}

std::shared_ptr<void> allocate_resident(int64_t bytes, int device) {
  const cuda::DeviceGuard guard(device);
  void* data = nullptr;
  const cuda::RelaxedCapture relaxed;
  if (bytes > 0) RECENGINE_CUDA_CHECK(cudaMalloc(&data, static_cast<size_t>(bytes)));
  return owned(data, device, [](void* memory) { cudaFree(memory); });
}

std::shared_ptr<void> allocate_for_calls(int64_t bytes, int device) {
  const cuda::DeviceGuard guard(device);
  int has_pools = 0;
  RECENGINE_CUDA_CHECK(cudaDeviceGetAttribute(&has_pools, cudaDevAttrMemoryPoolsSupported, device));
  if (has_pools == 0) return allocate_resident(bytes, device);
  const cuda::RelaxedCapture relaxed;
  const CudaStream stream = thread_stream(device);
  void* const data = cuda::allocate(bytes, as_stream(stream));
  std::shared_ptr<void> memory = owned(data, device, [](void* unused) { cudaFree(unused); });
  synchronize(device, stream);
  return memory;
}

std::shared_ptr<void> allocate_mapped(int64_t bytes, int device) {
  const cuda::DeviceGuard guard(device);
  void* data = nullptr;
  const cuda::RelaxedCapture relaxed;
  if (bytes > 0) {
    RECENGINE_CUDA_CHECK(cudaHostAlloc(&data, static_cast<size_t>(bytes),
                                       cudaHostAllocMapped | cudaHostAllocPortable));
  }
  return owned(data, device, [](void* memory) { cudaFreeHost(memory); });
}

void copy_to_device(void* to, const void* from, int64_t bytes, int device, CudaStream stream) {
  if (bytes == 0) return;
  const cuda::DeviceGuard guard(device);
  RECENGINE_CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice,
                                       as_stream(stream)));
  RECENGINE_CUDA_CHECK(cudaStreamSynchronize(as_stream(stream)));
}

void copy_to_host(void* to, const void* from, int64_t bytes, int device, CudaStream stream) {
  if (bytes == 0) return;
  const cuda::DeviceGuard guard(device);
  RECENGINE_CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                                       as_stream(stream)));
  RECENGINE_CUDA_CHECK(cudaStreamSynchronize(as_stream(stream)));
}

void copy_async(void* to, const void* from, int64_t bytes, int device, CudaStream stream) {
  if (bytes == 0) return;
  const cuda::DeviceGuard guard(device);
  RECENGINE_CUDA_CHECK(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, as_stream(stream)));
}

void copy_rows_async(void* to, int64_t row_bytes, const void* from, int64_t from_bytes,
                     int64_t rows, int device, CudaStream stream) {
  if (row_bytes == 0 || rows == 0) return;
  const cuda::DeviceGuard guard(device);
  const auto width = static_cast<size_t>(row_bytes);
  RECENGINE_CUDA_CHECK(cudaMemcpy2DAsync(to, width, from, static_cast<size_t>(from_bytes), width,
                                         static_cast<size_t>(rows), cudaMemcpyDefault,
                                         as_stream(stream)));
}

void synchronize(int device, CudaStream stream) {
  const cuda::DeviceGuard guard(device);
  RECENGINE_CUDA_CHECK(cudaStreamSynchronize(as_stream(stream)));
}

CudaStream thread_stream(int device) {
  static thread_local std::map<int, cuda::Stream> streams;
  return streams.try_emplace(device, device).first->second.get();
}

std::shared_ptr<void> make_stream(int device) {
  const auto stream = std::make_shared<cuda::Stream>(device);
  return {stream, stream->get()};
}

int device_of(const void* pointer) {
  cudaPointerAttributes attributes;
  RECENGINE_CUDA_CHECK(cudaPointerGetAttributes(&attributes, pointer));
  const bool on_device =
      attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  return on_device ? attributes.device : kHost;
}

void order_after(int device, CudaStream stream, CudaStream other) {
  const cuda::DeviceGuard guard(device);
  if (capture_of(as_stream(stream)) != capture_of(as_stream(other))) {
    throw InputError(
        "expected arrays of the stream that is captured, or of one that joined it, found one of "
        "another stream");
  }
  cudaEvent_t event;
  RECENGINE_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  const cudaError_t recorded = cudaEventRecord(event, as_stream(other));
  const cudaError_t waits =
      recorded == cudaSuccess ? cudaStreamWaitEvent(as_stream(stream), event, 0) : recorded;
  cudaEventDestroy(event);
  cuda::check(waits, "order_after");
}

}  // namespace recengine
