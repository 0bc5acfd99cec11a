#include "triton/model.h"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "triton/status.h"

namespace recengine::triton {
namespace {

// What the client's side recognises a shed request by.
constexpr const char* kShedToken = "recengine: shed: ";

ModelConfig read_config(TRITONBACKEND_Model* handle) {
  TRITONSERVER_Message* message = nullptr;
  require(TRITONBACKEND_ModelConfig(handle, /*config_version=*/1, &message));
  const auto destroy = [](TRITONSERVER_Message* owned) { warn(TRITONSERVER_MessageDelete(owned)); };
  const std::unique_ptr<TRITONSERVER_Message, decltype(destroy)> owner(message, destroy);
  const char* base = nullptr;
  size_t bytes = 0;
  require(TRITONSERVER_MessageSerializeToJson(message, &base, &bytes));
  return parse_config(std::string(base, bytes));
}

std::string model_version(TRITONBACKEND_Model* handle) {
  uint64_t version = 0;
  require(TRITONBACKEND_ModelVersion(handle, &version));
  return std::to_string(version);
}

std::string version_directory(TRITONBACKEND_Model* handle, const std::string& version) {
  TRITONBACKEND_ArtifactType type = TRITONBACKEND_ARTIFACT_FILESYSTEM;
  const char* location = nullptr;
  require(TRITONBACKEND_ModelRepository(handle, &type, &location));
  return std::string(location) + "/" + version;
}

// On a GPU the stages run, and not the dense graphs.
void require_split(const ModelConfig& config, const Engine& engine) {
  const bool both = engine.has(Stage::kTopK) && engine.has(Stage::kRetrievalLookup);
  if (engine.device() == kHost ||
      !(both || (engine.has(Stage::kOrder) && engine.has(Stage::kRankingLookup)))) {
    return;
  }
  throw StatusError(TRITONSERVER_ERROR_INVALID_ARG,
                    "[" + config.name + "] config.pbtxt: instance_group: expected KIND_CPU, for " +
                        "this version's graphs are compiled for a CPU, found a GPU; " +
                        "`recengine compile --target gpu` compiles for it");
}

std::string megabytes(int64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

std::string device_text(const EngineMemory& memory) {
  return megabytes(memory.device_tables) + " of tables, " + megabytes(memory.device_shared) +
         " of these loaded before";
}

std::string memory_text(const EngineMemory& memory) {
  std::string text = megabytes(memory.resident) + " of tensors in memory, " +
                     megabytes(memory.huge) + " of these in huge pages";
  if (memory.huge < memory.resident / 2) {
    text += "; see /sys/kernel/mm/transparent_hugepage/enabled";
  }
  return text;
}

}  // namespace

Model::Model(TRITONBACKEND_Model* handle, const EngineOptions& options, const Metrics& metrics)
    : config_(read_config(handle)) {
  const std::string version = model_version(handle);
  engine_ = Engine::load(version_directory(handle, version), options);
  require_split(config_, *engine_);
  if (options.device != kHost) slots_ = std::make_unique<DeviceSlots>(options.device);
  config_.stage = served_stage(config_, *engine_);
  check_config(config_, *engine_);
  schema_ = engine_->schema();
  if (config_.max_candidates > 0) schema_.max_candidates = config_.max_candidates;
  const auto counter = [&](const char* reason) {
    return std::make_unique<Metric>(
        metrics.shed,
        Metric::Labels{{"model", config_.name}, {"version", version}, {"reason", reason}});
  };
  shed_queue_full_ = counter("queue_full");
  shed_deadline_ = counter("deadline");
  const auto of_version = [&](const MetricFamily& family) {
    return std::make_unique<Metric>(family,
                                    Metric::Labels{{"model", config_.name}, {"version", version}});
  };
  waiting_rows_ = of_version(metrics.waiting_rows);
  replays_ = of_version(metrics.replays);
  show_waiting(0);
  std::string loaded = "recengine: " + config_.name + " version " + version + ": " + schema_.name +
                       ", " + std::to_string(schema_.num_items) + " items";
  if (options.device != kHost) {
    loaded += ", on GPU " + std::to_string(options.device) + ", " + device_text(engine_->memory());
  } else if (const EngineMemory memory = engine_->memory(); memory.resident > 0) {
    loaded += ", " + memory_text(memory);
  }
  log_info(loaded);
}

int64_t Model::threads_worth(int64_t rows, int64_t threads) const {
  if (slots_ == nullptr) return std::min(engine_->threads_worth(config_.stage, rows), threads);
  const int64_t instances = std::max<int64_t>(instances_.load(), 1);
  return (threads + instances - 1) / instances;
}

int64_t Model::run(Requests requests, const std::function<void()>& computed) const noexcept {
  try {
    return run_batch({config_, schema_, *engine_, slots_.get(), *replays_}, std::move(requests),
                     computed);
  } catch (...) {
    return 0;  // out of memory: the requests' destructors have answered
  }
}

void Model::reserve_memory() const noexcept {
  if (slots_ == nullptr) return;
  try {
    slots_->reserve(instances_.load() + 1);  // another batch begins while those of all run
  } catch (const std::exception& error) {
    log_info("recengine: " + config_.name + ": memory for calls to come: " + error.what());
  }
}

void Model::shed(Request& request, ShedReason reason) const noexcept {
  std::string message = kShedToken;
  if (reason == ShedReason::kQueueFull) {
    shed_queue_full_->increment();
    message += "queue full (" + std::to_string(config_.max_queue_rows) + " rows)";
  } else {
    shed_deadline_->increment();
    const uint64_t deadline_ns = std::max(request.deadline_ns(), request.arrival_ns());
    const uint64_t timeout_us = (deadline_ns - request.arrival_ns()) / 1000;
    message += "deadline of " + std::to_string(timeout_us) + " us cannot be met";
  }
  request.fail(TRITONSERVER_ERROR_UNAVAILABLE, message, {});
}

}  // namespace recengine::triton
