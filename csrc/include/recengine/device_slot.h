#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "recengine/cuda.h"
#include "recengine/device_scratch.h"

namespace recengine {

// What calls on a GPU are made with, one call at a time, each waited for before the next: a stream,
// memory, and graphs of what calls before put on the stream.
class DeviceSlot {
 public:
  // With so much memory to begin with.
  DeviceSlot(int device, int64_t scratch_bytes);

  CudaStream stream() const { return stream_.get(); }
  DeviceScratch& scratch() { return scratch_; }
  CudaContext context() { return {device_, stream(), /*check=*/false, &scratch_}; }

  // Puts `work` on the stream. `key` is all that decides what it puts there, the addresses of its
  // arrays included. From the second call with a key on that is a graph, captured then. What `work`
  // takes from the scratch is given back.
  void run(std::vector<int64_t> key, const std::function<void()>& work);

  // Calls of run() that put a graph there.
  int64_t num_replays() const { return num_replays_; }

 private:
  using Key = std::vector<int64_t>;
  struct Graph {
    DeviceGraph graph;
    int64_t used;  // the run() that used it last
  };

  const DeviceGraph* find_graph(const Key& key, const std::function<void()>& work);
  bool was_seen(const Key& key);

  int device_;
  std::shared_ptr<void> stream_;
  DeviceScratch scratch_;
  std::map<Key, Graph> graphs_;
  std::set<Key> seen_;  // once, without a graph
  int refused_captures_ = 0;
  int64_t num_runs_ = 0;
  int64_t num_replays_ = 0;
};

// By the slot, if there is one; else at once.
inline void run_by(DeviceSlot* slot, std::vector<int64_t> key, const std::function<void()>& work) {
  if (slot == nullptr) {
    work();
  } else {
    slot->run(std::move(key), work);
  }
}

// The slots of an engine; it outlives them. Safe to call from many threads at once.
class DeviceSlots {
 public:
  explicit DeviceSlots(int device) : device_(device) {}

  int device() const { return device_; }

  // The one that was used last of those that are free, or a new one with as much memory as any
  // call has taken, where the device has that.
  std::unique_ptr<DeviceSlot> take();

  // When all that its stream has got is done.
  void give_back(std::unique_ptr<DeviceSlot> slot) noexcept;

  // Makes slots until there are so many, and those that are free have as much memory as any call
  // has taken, where the device has that: then as many calls at a time seldom take any from it.
  // Throws DeviceError.
  void reserve(int64_t count);

 private:
  std::unique_ptr<DeviceSlot> make(int64_t bytes) const;

  int device_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<DeviceSlot>> free_;
  int64_t count_ = 0;  // with those in use
  int64_t most_bytes_ = 0;
};

}  // namespace recengine
