#include "recengine/device_slot.h"

#include <algorithm>
#include <utility>

#include "recengine/error.h"

namespace recengine {
namespace {

constexpr size_t kMostGraphs = 256;
constexpr size_t kMostSeen = 1024;
constexpr int kMostRefused = 8;  // captures in a row, also those that other threads' calls disturb

}  // namespace

DeviceSlot::DeviceSlot(int device, int64_t scratch_bytes)
    : device_(device), stream_(make_stream(device)), scratch_(device, scratch_bytes) {}

void DeviceSlot::run(std::vector<int64_t> key, const std::function<void()>& work) {
  const DeviceScratch::Position begin = scratch_.position();
  key.push_back(static_cast<int64_t>(begin.chunk));
  key.push_back(begin.offset);
  ++num_runs_;
  if (const DeviceGraph* const graph = find_graph(key, work)) {
    graph->launch(stream());
    ++num_replays_;
  } else {
    work();
  }
  scratch_.go_back(begin);
}

// Null for a key that is new, or cannot be captured.
const DeviceGraph* DeviceSlot::find_graph(const Key& key, const std::function<void()>& work) {
  const auto found = graphs_.find(key);
  if (found != graphs_.end()) {
    found->second.used = num_runs_;
    return &found->second.graph;
  }
  if (refused_captures_ == kMostRefused || !was_seen(key)) return nullptr;
  if (graphs_.size() == kMostGraphs) {
    graphs_.erase(std::min_element(
        graphs_.begin(), graphs_.end(),
        [](const auto& a, const auto& b) { return a.second.used < b.second.used; }));
  }
  const DeviceScratch::Position begin = scratch_.position();
  const DeviceGraph* graph = nullptr;
  try {
    graph = &graphs_.emplace(key, Graph{{device_, stream(), work}, num_runs_}).first->second.graph;
    refused_captures_ = 0;
  } catch (const DeviceError&) {
    ++refused_captures_;  // it runs as before, or says itself what is wrong with the device
  }
  scratch_.go_back(begin);
  return graph;
}

// Whether there was such a call before, not too long ago.
bool DeviceSlot::was_seen(const Key& key) {
  if (seen_.erase(key) > 0) return true;
  if (seen_.size() == kMostSeen) seen_.clear();
  seen_.insert(key);
  return false;
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
    ++count_;
  }
  try {
    return make(bytes);
  } catch (...) {
    const std::lock_guard<std::mutex> lock(mutex_);
    --count_;
    throw;
  }
}

void DeviceSlots::give_back(std::unique_ptr<DeviceSlot> slot) noexcept {
  slot->scratch().go_back({});
  const std::lock_guard<std::mutex> lock(mutex_);
  most_bytes_ = std::max(most_bytes_, slot->scratch().bytes());
  try {
    free_.push_back(std::move(slot));
  } catch (...) {
    --count_;  // out of memory: the next call makes a new one
  }
}

void DeviceSlots::reserve(int64_t count) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (std::unique_ptr<DeviceSlot>& slot : free_) {
    if (slot->scratch().bytes() < most_bytes_) slot->scratch().hold(most_bytes_);
  }
  // They are used last: the others may have graphs.
  for (; count_ < count; ++count_) free_.insert(free_.begin(), make(most_bytes_));
}

// With so much memory, where the device has that: a small call may still find what it needs.
std::unique_ptr<DeviceSlot> DeviceSlots::make(int64_t bytes) const {
  try {
    return std::make_unique<DeviceSlot>(device_, bytes);
  } catch (const DeviceMemoryError&) {
    return std::make_unique<DeviceSlot>(device_, 0);
  }
}

}  // namespace recengine
