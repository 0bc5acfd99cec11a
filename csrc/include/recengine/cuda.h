#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace recengine {

struct CudaDevice {
  std::string name;
  int32_t major = 0;  // compute capability
  int32_t minor = 0;
  int64_t memory_bytes = 0;
};

constexpr int kHost = -1;  // in the place of a device

// A cudaStream_t; null is the legacy default stream.
using CudaStream = void*;

class DeviceScratch;

// What an operation on a GPU runs on. It puts its work on the stream and does not wait for it,
// unless `check` is set: then it waits, and throws what the operation on the CPU throws for values
// that are out of range. Without, such values read nothing outside the arrays, and what they give
// is not defined.
struct CudaContext {
  int device = 0;
  CudaStream stream = nullptr;
  bool check = true;
  DeviceScratch* scratch = nullptr;  // to work in; null: memory of the stream's pool
};

// True when this build has the CUDA parts (CMake option RECENGINE_CUDA). Without them every
// function below throws DeviceError.
bool cuda_built();

// The GPUs that this process sees; empty without a driver. Throws DeviceError when the driver fails
// or is too old for this build.
std::vector<CudaDevice> cuda_devices();

// Memory of a device; taken, and given back with the last owner, in the order of the stream.
std::shared_ptr<void> allocate_on_device(int64_t bytes, int device, CudaStream stream);

// Memory for what is loaded once. Its last owner has waited for all that reads it.
std::shared_ptr<void> allocate_resident(int64_t bytes, int device);

// Memory that calls work in, ready when this returns. While others compute: no stream waits for it,
// as any may for that of allocate_resident(). Its last owner has waited for all that uses it.
std::shared_ptr<void> allocate_for_calls(int64_t bytes, int device);

// Memory of the host that is pinned and that devices read in place, by the same address. Its last
// owner has waited, too.
std::shared_ptr<void> allocate_mapped(int64_t bytes, int device);

// Return when the host's memory may change, or holds the copy. What is loaded while others compute
// goes by thread_stream(): the legacy default stream waits for them, and they for it.
void copy_to_device(void* to, const void* from, int64_t bytes, int device, CudaStream stream);
void copy_to_host(void* to, const void* from, int64_t bytes, int device, CudaStream stream);

// The calling thread's own stream of a device, which the legacy default stream does not wait for.
CudaStream thread_stream(int device);

// A stream that neither waits for the legacy default stream, nor that for it.
std::shared_ptr<void> make_stream(int device);

// Resident memory with a copy of the host's values.
template <typename T>
std::shared_ptr<void> copy_resident(const T* values, int64_t size, int device) {
  const int64_t bytes = size * int64_t{sizeof(T)};
  std::shared_ptr<void> copy = allocate_resident(bytes, device);
  if (bytes > 0) copy_to_device(copy.get(), values, bytes, device, thread_stream(device));
  return copy;
}

// The values of an array of the device, when all that the stream has got is done.
template <typename T>
std::vector<T> host_copy(const CudaContext& context, const T* values, int64_t size) {
  std::vector<T> copy(static_cast<size_t>(size));
  if (size == 0) return copy;
  copy_to_host(copy.data(), values, size * int64_t{sizeof(T)}, context.device, context.stream);
  return copy;
}

// Copies between any two memories, in the order of the stream. Pinned memory of the host must stay
// as it is until the stream has come this far; of other memory CUDA makes a copy before it returns.
void copy_async(void* to, const void* from, int64_t bytes, int device, CudaStream stream);

// Of each of some rows, from_bytes apart, the first row_bytes, which go one after another.
void copy_rows_async(void* to, int64_t row_bytes, const void* from, int64_t from_bytes,
                     int64_t rows, int device, CudaStream stream);

// Returns when all that the stream has got is done. Throws DeviceError when some of it failed.
void synchronize(int device, CudaStream stream);

// Work that was captured from a stream, to be put on streams again in one step. It reads and writes
// the same addresses each time.
class DeviceGraph {
 public:
  // Captures what `work` puts on the stream; nothing of it runs yet. `work` must not wait, and
  // takes its memory from a scratch. Throws DeviceError when it cannot be captured; what `work`
  // throws.
  DeviceGraph(int device, CudaStream stream, const std::function<void()>& work);

  void launch(CudaStream stream) const;

 private:
  int device_;
  std::shared_ptr<void> graph_;  // a cudaGraphExec_t; when it goes no stream runs it any more
};

// The device whose memory this is, or kHost.
int device_of(const void* pointer);

// What `stream` gets from now on begins after what `other` has got until now.
void order_after(int device, CudaStream stream, CudaStream other);

}  // namespace recengine
