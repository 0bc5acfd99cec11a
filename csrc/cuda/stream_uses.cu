#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cpu/shared_by_key.h"
#include "cuda/launch.h"
#include "cuda/relaxed_capture.h"
#include "cuda/stream.h"
#include "recengine/error.h"
#include "recengine/stream_uses.h"

namespace recengine {

using cuda::as_stream;

// An event that is recorded anew for each work on its stream: who waits for it waits for all of
// that.
class StreamMark {
 public:
  explicit StreamMark(int device) : device_(device) {
    const cuda::DeviceGuard guard(device);
    RECENGINE_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
  }
  ~StreamMark() { cudaEventDestroy(event_); }
  StreamMark(const StreamMark&) = delete;
  StreamMark& operator=(const StreamMark&) = delete;

  void set(cudaStream_t stream) const {
    const cuda::DeviceGuard guard(device_);
    RECENGINE_CUDA_CHECK(cudaEventRecord(event_, stream));
  }
  void wait() const {
    const cuda::RelaxedCapture relaxed;
    RECENGINE_CUDA_CHECK(cudaEventSynchronize(event_));
  }

 private:
  int device_;
  cudaEvent_t event_ = nullptr;
};

namespace {

bool is_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) == cudaSuccess) {
    return status != cudaStreamCaptureStatusNone;
  }
  cudaGetLastError();  // who asks later must not be told of this
  return true;         // what waits for a captured stream; the work itself will say so
}

uint64_t id_of(cudaStream_t stream) {
#if CUDART_VERSION >= 12000 || defined(RECENGINE_CUDA_EMULATED)
  unsigned long long id = 0;
  RECENGINE_CUDA_CHECK(cudaStreamGetId(stream, &id));
  return id;
#else
  return reinterpret_cast<uintptr_t>(stream);  // which a later stream may get
#endif
}

std::shared_ptr<StreamMark> mark_of(int device, cudaStream_t stream) {
  static SharedByKey<std::pair<int, uint64_t>, StreamMark> all;
  return all.get({device, id_of(stream)},
                 [device] { return std::make_shared<StreamMark>(device); });
}

}  // namespace

StreamUses::~StreamUses() {
  for (const std::shared_ptr<StreamMark>& mark : marks_) {
    try {
      mark->wait();
    } catch (const DeviceError&) {
      // The device has failed, or the process ends.
    }
  }
}

StreamUse::StreamUse(int device, CudaStream stream) : stream_(stream) {
  const cuda::DeviceGuard guard(device);
  if (!is_captured(as_stream(stream))) mark_ = mark_of(device, as_stream(stream));
}

StreamUse::~StreamUse() {
  if (mark_ == nullptr) return;
  try {
    mark_->set(as_stream(stream_));
  } catch (const DeviceError&) {
    // The device has failed: who waits for this work will hear of it, too.
  }
}

void StreamUse::reads(StreamUses& uses) const {
  if (mark_ == nullptr) return;
  auto& marks = uses.marks_;
  if (std::find(marks.begin(), marks.end(), mark_) == marks.end()) marks.push_back(mark_);
}

}  // namespace recengine
