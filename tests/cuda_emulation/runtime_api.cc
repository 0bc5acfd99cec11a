// Device memory, streams and events of one emulated GPU; see cuda_runtime_api.h.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "cuda_runtime_api.h"
#include "device_memory.h"

struct CudaEmulatedGraph {
  std::vector<std::function<cudaError_t()>> steps;
};
struct CudaEmulatedStream {
  bool blocking;  // waits for the legacy default stream, and that for it
};
struct CudaEmulatedEvent {
  cudaStream_t stream = nullptr;
  int64_t work = 0;  // that the stream had got
};

namespace {

using cuda_emulation::DeviceAccess;
using cuda_emulation::on_device;

constexpr int kMultiprocessors = 4;

int from_environment(const char* name, int otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}
int capability() { return from_environment("CUDA_EMULATED_CAPABILITY", 90); }
int driver_version() { return from_environment("CUDA_EMULATED_DRIVER", CUDART_VERSION); }

bool sides_fit(const void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (kind == cudaMemcpyDefault) return true;
  return bytes == 0 || (on_device(to, bytes) == (kind != cudaMemcpyDeviceToHost) &&
                        on_device(from, bytes) == (kind != cudaMemcpyHostToDevice));
}

struct Capture {
  cudaStreamCaptureMode mode;
  bool blocking;
  unsigned long long id;
  std::thread::id thread = std::this_thread::get_id();
  std::unique_ptr<CudaEmulatedGraph> graph = std::make_unique<CudaEmulatedGraph>();
  bool invalidated = false;
};
std::mutex capture_mutex;
std::map<cudaStream_t, Capture> captures;  // streams of callers may be any number
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

// What a stream has got, in steps, and how much of that somebody has waited for.
struct Progress {
  int64_t got = 0;
  int64_t waited_for = 0;
};
std::mutex progress_mutex;
std::map<cudaStream_t, Progress> progress;

// The capture of the stream, or null; a stream is captured by one thread.
Capture* capture_of(cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(capture_mutex);
  const auto found = captures.find(stream);
  return found == captures.end() ? nullptr : &found->second;
}

// Spoils the captures that forbid what is done, and says so; cudaSuccess where none does.
template <typename Forbids>
cudaError_t refuse(Forbids forbids, cudaError_t error) {
  const std::lock_guard<std::mutex> lock(capture_mutex);
  cudaError_t status = cudaSuccess;
  for (auto& [stream, capture] : captures) {
    if (!forbids(capture)) continue;
    capture.invalidated = true;
    status = error;
  }
  return status;
}

// Of a call that could wait for what is captured, whatever the stream.
cudaError_t refuse_unsafe() {
  const auto forbids = [](const Capture& capture) {
    if (thread_mode == cudaStreamCaptureModeRelaxed) return false;
    if (capture.thread == std::this_thread::get_id()) {
      return capture.mode != cudaStreamCaptureModeRelaxed;
    }
    return thread_mode == cudaStreamCaptureModeGlobal &&
           capture.mode == cudaStreamCaptureModeGlobal;
  };
  return refuse(forbids, cudaErrorStreamCaptureUnsupported);
}

bool is_legacy(cudaStream_t stream) { return reinterpret_cast<uintptr_t>(stream) <= 1; }

// Of work for a stream: the legacy default stream would have to wait for what is captured.
cudaError_t refuse_implicit(cudaStream_t stream) {
  if (!is_legacy(stream)) return cudaSuccess;
  return refuse([](const Capture& capture) { return capture.blocking; },
                cudaErrorStreamCaptureImplicit);
}

// Of a step that must not be part of a graph.
cudaError_t refuse_captured(cudaStream_t stream) {
  const cudaError_t refused = refuse_implicit(stream);
  if (refused != cudaSuccess) return refused;
  Capture* const capture = capture_of(stream);
  if (capture == nullptr) return cudaSuccess;
  capture->invalidated = true;
  return cudaErrorStreamCaptureUnsupported;
}

cudaError_t take(void** pointer, size_t bytes) {
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  *pointer = cuda_emulation::take_device_memory(bytes);
  return *pointer == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t give_back(void* pointer) {
  if (pointer == nullptr) return cudaSuccess;
  return cuda_emulation::give_back_device_memory(pointer) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (!sides_fit(to, from, bytes, kind)) return cudaErrorInvalidValue;
  const DeviceAccess access;
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}

}  // namespace

cudaError_t cuda_emulation::put(cudaStream_t stream, std::function<cudaError_t()> step) {
  const cudaError_t refused = refuse_implicit(stream);
  if (refused != cudaSuccess) return refused;
  Capture* const capture = capture_of(stream);
  if (capture == nullptr) {
    {
      const std::lock_guard<std::mutex> lock(progress_mutex);
      ++progress[stream].got;
    }
    return step();
  }
  capture->graph->steps.push_back(std::move(step));
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorLaunchFailure:
      return cuda_emulation::launch_failure();
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureImplicit:
      return "operation would make the legacy stream depend on a capturing blocking stream";
    default:
      return "invalid argument";
  }
}

cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = driver_version();
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  if (driver_version() < CUDART_VERSION) return cudaErrorInsufficientDriver;
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  *properties = {"emulated on the CPU", cuda_emulation::kDeviceBytes, capability() / 10,
                 capability() % 10, kMultiprocessors};
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = kMultiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = capability() / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = capability() % 10;
      return cudaSuccess;
    case cudaDevAttrMemoryPoolsSupported:
      *value = 1;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  return refuse([](const Capture&) { return true; }, cudaErrorStreamCaptureUnsupported);
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  *pointer = nullptr;
  const cudaError_t refused = refuse_unsafe();
  return refused != cudaSuccess ? refused : take(pointer, bytes);
}
cudaError_t cudaFree(void* pointer) {
  const cudaError_t refused = refuse_unsafe();
  return refused != cudaSuccess ? refused : give_back(pointer);
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  const cudaError_t refused = refuse_unsafe();
  if (refused != cudaSuccess) return refused;
  return posix_memalign(pointer, 4096, bytes) == 0 ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void* pointer) {
  const cudaError_t refused = refuse_unsafe();
  if (refused != cudaSuccess) return refused;
  std::free(pointer);
  return cudaSuccess;
}
cudaError_t cudaMallocFromPoolAsync(void** pointer, size_t bytes, cudaMemPool_t,
                                    cudaStream_t stream) {
  const cudaError_t refused = refuse_captured(stream);
  return refused != cudaSuccess ? refused : take(pointer, bytes);
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
  *pool = nullptr;
  return refuse_unsafe();
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) {
  const cudaError_t refused = refuse_captured(stream);
  return refused != cudaSuccess ? refused : give_back(pointer);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const bool device = on_device(pointer, 1);
  *attributes = {device ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered, device ? 0 : -2};
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const cudaError_t unsafe = refuse_unsafe();
  const cudaError_t implicit = refuse_implicit(nullptr);
  if (unsafe != cudaSuccess || implicit != cudaSuccess) return std::max(unsafe, implicit);
  return copy(to, from, bytes, kind);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (!on_device(to, bytes) || !on_device(from, bytes)) {
    const cudaError_t refused = refuse_captured(stream);
    if (refused != cudaSuccess) return refused;
  }
  return cuda_emulation::put(stream, [=] { return copy(to, from, bytes, kind); });
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t rows, cudaMemcpyKind kind, cudaStream_t stream) {
  const cudaError_t refused = refuse_captured(stream);
  if (refused != cudaSuccess) return refused;
  for (size_t row = 0; row < rows; ++row) {
    const cudaError_t status = copy(static_cast<char*>(to) + row * to_pitch,
                                    static_cast<const char*>(from) + row * from_pitch, width, kind);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return cuda_emulation::put(stream, [=] {
    if (bytes > 0 && !on_device(to, bytes)) return cudaErrorInvalidValue;
    const DeviceAccess access;
    if (bytes > 0) std::memset(to, value, bytes);
    return cudaSuccess;
  });
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  *stream = new CudaEmulatedStream{flags != cudaStreamNonBlocking};
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  {
    const std::lock_guard<std::mutex> lock(progress_mutex);
    progress.erase(stream);
  }
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const cudaError_t refused = refuse_captured(stream);
  if (refused != cudaSuccess) return refused;
  const std::lock_guard<std::mutex> lock(progress_mutex);
  Progress& own = progress[stream];
  own.waited_for = own.got;
  return cudaSuccess;
}
cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  *id = reinterpret_cast<uintptr_t>(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t, unsigned) {
  return refuse_implicit(stream);
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const std::lock_guard<std::mutex> lock(capture_mutex);
  static unsigned long long num_captures = 0;
  const bool is_new =
      !is_legacy(stream) &&
      captures.try_emplace(stream, Capture{mode, stream->blocking, ++num_captures}).second;
  return is_new ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  const std::lock_guard<std::mutex> lock(capture_mutex);
  auto ended = captures.extract(stream);
  if (ended.empty()) return cudaErrorInvalidValue;
  if (ended.mapped().invalidated) return cudaErrorStreamCaptureInvalidated;
  *graph = ended.mapped().graph.release();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  *executable = new CudaEmulatedGraph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const cudaError_t refused = refuse_captured(stream);
  if (refused != cudaSuccess) return refused;
  for (const auto& step : executable->steps) {
    const cudaError_t status = step();
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  if (is_legacy(stream)) {
    const std::lock_guard<std::mutex> lock(capture_mutex);
    const bool blocked = std::any_of(captures.begin(), captures.end(),
                                     [](const auto& entry) { return entry.second.blocking; });
    return blocked ? cudaErrorStreamCaptureImplicit : cudaSuccess;
  }
  const bool captured = capture_of(stream) != nullptr;
  *status = captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id) {
  const cudaError_t error = cudaStreamIsCapturing(stream, status);
  const Capture* const capture = capture_of(stream);
  *id = capture == nullptr ? 0 : capture->id;
  return error;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(thread_mode, *mode);
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CudaEmulatedEvent;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const cudaError_t refused = refuse_implicit(stream);
  if (refused != cudaSuccess) return refused;
  const std::lock_guard<std::mutex> lock(progress_mutex);
  *event = {stream, progress[stream].got};
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const cudaError_t refused = refuse_unsafe();
  if (refused != cudaSuccess) return refused;
  const std::lock_guard<std::mutex> lock(progress_mutex);
  const auto found = progress.find(event->stream);
  const bool done = found == progress.end() || found->second.waited_for >= event->work;
  return done ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const cudaError_t refused = refuse_unsafe();
  if (refused != cudaSuccess) return refused;
  const std::lock_guard<std::mutex> lock(progress_mutex);
  const auto found = progress.find(event->stream);
  if (found == progress.end()) return cudaSuccess;
  found->second.waited_for = std::max(found->second.waited_for, event->work);
  return cudaSuccess;
}

int cuda_emulation_streams_not_waited_for() {
  const std::lock_guard<std::mutex> lock(progress_mutex);
  return static_cast<int>(std::count_if(progress.begin(), progress.end(), [](const auto& entry) {
    return entry.second.waited_for < entry.second.got;
  }));
}
