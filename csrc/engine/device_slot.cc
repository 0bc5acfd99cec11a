#include "recengine/device_slot.h"

#include <algorithm>
#include <utility>

#include "recengine/error.h"

namespace recengine {
namespace {

// Keys that a slot knows: a graph for each batch size, some for several.
constexpr size_t kMostKnown = 256;

}  // namespace

DeviceSlot::DeviceSlot(int device, int64_t scratch_bytes)
    : device_(device), stream_(make_stream(device)), scratch_(device, scratch_bytes) {}

void DeviceSlot::run(std::vector<int64_t> key, const std::function<void()>& work) {
  const DeviceScratch::Position begin = scratch_.position();
  key.push_back(static_cast<int64_t>(begin.chunk));
  key.push_back(begin.offset);
  if (known_.size() == kMostKnown && known_.count(key) == 0) forget_oldest();
  Known& known = known_[std::move(key)];
  const bool is_new = known.used == 0;
  known.used = ++num_runs_;
  if (known.graph == nullptr && !is_new && captures_) capture(known, work);
  if (known.graph != nullptr) {
    known.graph->launch(stream());
    ++num_replays_;
  } else {
    work();
  }
  scratch_.go_back(begin);
}

void DeviceSlot::capture(Known& known, const std::function<void()>& work) {
  const DeviceScratch::Position begin = scratch_.position();
  try {
    known.graph = std::make_unique<DeviceGraph>(device_, stream(), work);
  } catch (const DeviceError&) {
    captures_ = false;  // it runs as before, or says itself what is wrong with the device
  }
  scratch_.go_back(begin);
}

void DeviceSlot::forget_oldest() {
  known_.erase(std::min_element(known_.begin(), known_.end(), [](const auto& a, const auto& b) {
    return a.second.used < b.second.used;
  }));
}

std::unique_ptr<DeviceSlot> DeviceSlots::take() {
  int64_t bytes = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      std::unique_ptr<DeviceSlot> slot = std::move(free_.back());
      free_.pop_back();
      return slot;
    }
    bytes = most_bytes_;
  }
  return std::make_unique<DeviceSlot>(device_, bytes);
}

void DeviceSlots::give_back(std::unique_ptr<DeviceSlot> slot) noexcept {
  slot->scratch().go_back({});
  const std::lock_guard<std::mutex> lock(mutex_);
  most_bytes_ = std::max(most_bytes_, slot->scratch().bytes());
  try {
    free_.push_back(std::move(slot));
  } catch (...) {
    // Out of memory: the next call makes a new one.
  }
}

}  // namespace recengine
