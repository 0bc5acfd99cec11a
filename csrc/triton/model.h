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

  // How many threads a batch of so many rows could keep busy by itself, at least 1.
  int64_t threads_worth(int64_t rows) const { return engine_->threads_worth(config_.stage, rows); }

  // How many batches run at once, unless many rows wait: on a GPU one an instance, for each search
  // reads all items there. 0: as many as keep the threads busy.
  int64_t batches_at_once() const { return slots_ == nullptr ? 0 : instances_.load(); }
  void set_instances(int64_t count) { instances_ = count; }

  // Answers every one of the requests. `computed` may be called when only that is left to do.
  void run(Requests requests, const std::function<void()>& computed) const noexcept;

  // Refuses a request that the server has no time or room for, and counts it.
  void shed(Request& request, ShedReason reason) const noexcept;

  // Tells those who watch how many rows wait.
  void show_waiting(int64_t rows) const noexcept { waiting_rows_->set(double(rows)); }

 private:
  ModelConfig config_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<DeviceSlots> slots_;  // on a GPU
  std::atomic<int64_t> instances_{1};
  Schema schema_;  // the engine's, with the limit that clients are told
  std::unique_ptr<Metric> shed_queue_full_;
  std::unique_ptr<Metric> shed_deadline_;
  std::unique_ptr<Metric> waiting_rows_;
  std::unique_ptr<Metric> replays_;
};

}  // namespace recengine::triton
