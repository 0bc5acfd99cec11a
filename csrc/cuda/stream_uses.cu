#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

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
    RECENGINE_CUDA_CHECK(
        cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | cudaEventBlockingSync));
  }
  ~StreamMark() { cudaEventDestroy(event_); }
  StreamMark(const StreamMark&) = delete;
  StreamMark& operator=(const StreamMark&) = delete;

  void begin() { ++under_way_; }
  void end(cudaStream_t stream) noexcept {
    try {
      const cuda::DeviceGuard guard(device_);
      RECENGINE_CUDA_CHECK(cudaEventRecord(event_, stream));
    } catch (const DeviceError&) {
      // The device has failed: who waits for this work will hear of it, too.
    }
    --under_way_;
  }
  void wait() const {
    const cuda::RelaxedCapture relaxed;
    RECENGINE_CUDA_CHECK(cudaEventSynchronize(event_));
  }
  bool is_done() const {
    if (under_way_ > 0) return false;
    const cuda::RelaxedCapture relaxed;
    if (cudaEventQuery(event_) == cudaSuccess) return true;
    cudaGetLastError();  // who asks later must not be told of this
    return false;
  }

 private:
  int device_;
  cudaEvent_t event_ = nullptr;
  std::atomic<int> under_way_{0};  // work whose end is not recorded yet
};

namespace {

std::mutex marks_mutex;  // over the marks of all uses

// Not its address, which a later stream may get.
uint64_t id_of(cudaStream_t stream) {
  unsigned long long id = 0;
  RECENGINE_CUDA_CHECK(cudaStreamGetId(stream, &id));
  return id;
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
  if (cuda::is_captured(as_stream(stream))) return;
  mark_ = mark_of(device, as_stream(stream));
  mark_->begin();
}

StreamUse::~StreamUse() {
  if (mark_ != nullptr) mark_->end(as_stream(stream_));
}

void StreamUse::reads(StreamUses& uses) const {
  if (mark_ == nullptr) return;
  const std::lock_guard<std::mutex> lock(marks_mutex);
  auto& marks = uses.marks_;
  if (std::find(marks.begin(), marks.end(), mark_) != marks.end()) return;
  // Streams may come and go, a new one for every call.
  const auto is_done = [](const std::shared_ptr<StreamMark>& mark) { return mark->is_done(); };
  marks.erase(std::remove_if(marks.begin(), marks.end(), is_done), marks.end());
  marks.push_back(mark_);
}

}  // namespace recengine
