#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "recengine/device_slot.h"
#include "recengine/engine.h"
#include "triton/batch.h"
#include "triton/config.h"
#include "triton/metrics.h"

namespace recengine::triton {

enum class ShedReason : uint8_t { kQueueFull, kDeadline };

// One version of a served model on one device: immutable, shared by its instances there.
class Model {
 public:
  // Loads and checks the version directory. Throws BundleError, DeviceError or StatusError.
  Model(TRITONBACKEND_Model* handle, const EngineOptions& options, const Metrics& metrics);

  const ModelConfig& config() const { return config_; }

  // Of so many threads those that a batch of so many rows could keep busy by itself, at least 1. On
  // a GPU, where each search reads all items, an instance's share: it runs a batch at a time.
  int64_t threads_worth(int64_t rows, int64_t threads) const;

  // Whether it computes on a GPU, where other threads do not help.
  bool is_on_device() const { return slots_ != nullptr; }

  // Both return how many there are now.
  int64_t add_instance() { return ++instances_; }
  int64_t remove_instance() { return --instances_; }

  // Answers every one of the requests; returns how many rows were computed. `computed` may be
  // called when only answers are left to do.
  int64_t run(Requests requests, const std::function<void()>& computed) const noexcept;

  // After a warm-up: has as much memory as that took, for each batch that may run at a time.
  void reserve_memory() const noexcept;

  // Refuses a request that the server has no time or room for, and counts it.
  void shed(Request& request, ShedReason reason) const noexcept;

  // Tells those who watch how many rows wait.
  void show_waiting(int64_t rows) const noexcept { waiting_rows_->set(double(rows)); }

 private:
  ModelConfig config_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<DeviceSlots> slots_;  // on a GPU
  std::atomic<int64_t> instances_{0};
  Schema schema_;  // the engine's, with the limit that clients are told
  std::unique_ptr<Metric> shed_queue_full_;
  std::unique_ptr<Metric> shed_deadline_;
  std::unique_ptr<Metric> waiting_rows_;
  std::unique_ptr<Metric> replays_;
};

}  // namespace recengine::triton
