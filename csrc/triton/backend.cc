// The entry points that Triton calls. Backend, model and instance state live as long as Triton's
// objects of the same names.
#include <chrono>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "cpu/thread_pool.h"
#include "recengine/context.h"
#include "recengine/cuda.h"
#include "triton/api.h"
#include "triton/config.h"
#include "triton/metrics.h"
#include "triton/model.h"
#include "triton/request.h"
#include "triton/scheduler.h"
#include "triton/status.h"

#define RECENGINE_ENTRY extern "C" __attribute__((visibility("default")))

namespace recengine::triton {
namespace {

// Longer than the gaps between the loops of a search.
constexpr std::chrono::microseconds kSpin(50);

// What all models share: as many threads as the process has cores.
class Backend {
 public:
  explicit Backend(const BackendConfig& config)
      : config_(config),
        pool_(config.threads > 0 ? config.threads : usable_cores(), kSpin),
        scheduler_(pool_) {}

  Scheduler& scheduler() { return scheduler_; }
  const Metrics& metrics() const { return metrics_; }

  EngineOptions engine_options(int device = kHost) {
    EngineOptions options;
    options.pool = &pool_;
    options.num_streams = pool_.num_workers();
    options.resident = config_.resident;
    options.device = device;
    options.device_table_bytes = config_.gpu_table_bytes;
    return options;
  }

 private:
  BackendConfig config_;
  ThreadPool pool_;
  Metrics metrics_;
  Scheduler scheduler_;
};

// One version of a served model: loaded once for each device, for as long as instances are there.
class Placements {
 public:
  explicit Placements(TRITONBACKEND_Model* handle) : handle_(handle) {}

  // Throws what Model does, for every instance on the device.
  Model& join(int device, Backend& backend) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Placement& placement = placements_[device];
    if (placement.failure) std::rethrow_exception(placement.failure);
    if (placement.model == nullptr) load(placement, device, backend);
    placement.model->add_instance();
    return *placement.model;
  }

  void leave(const Model& model, Scheduler& scheduler) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& [device, placement] : placements_) {
      if (placement.model.get() != &model || placement.model->remove_instance() > 0) continue;
      scheduler.remove(model);
      placement.model.reset();
    }
  }

  void unload(Scheduler& scheduler) {
    for (const auto& [device, placement] : placements_) {
      if (placement.model != nullptr) scheduler.remove(*placement.model);
    }
  }

 private:
  struct Placement {
    std::unique_ptr<Model> model;
    std::exception_ptr failure;
  };

  void load(Placement& placement, int device, Backend& backend) {
    try {
      auto model =
          std::make_unique<Model>(handle_, backend.engine_options(device), backend.metrics());
      backend.scheduler().add(*model);
      placement.model = std::move(model);
    } catch (...) {
      placement.failure = std::current_exception();
      throw;
    }
  }

  TRITONBACKEND_Model* handle_;
  std::mutex mutex_;
  std::map<int, Placement> placements_;
};

void check_api_version() {
  uint32_t major = 0;
  uint32_t minor = 0;
  require(TRITONBACKEND_ApiVersion(&major, &minor));
  if (major != TRITONBACKEND_API_VERSION_MAJOR || minor < TRITONBACKEND_API_VERSION_MINOR) {
    throw StatusError(TRITONSERVER_ERROR_UNSUPPORTED,
                      "recengine: expected a server with backend API " +
                          std::to_string(TRITONBACKEND_API_VERSION_MAJOR) + "." +
                          std::to_string(TRITONBACKEND_API_VERSION_MINOR) +
                          " or later of the same major, found " + std::to_string(major) + "." +
                          std::to_string(minor));
  }
}

BackendConfig backend_config(TRITONBACKEND_Backend* backend) {
  TRITONSERVER_Message* message = nullptr;  // stays the server's
  require(TRITONBACKEND_BackendConfig(backend, &message));
  const char* base = nullptr;
  size_t bytes = 0;
  require(TRITONSERVER_MessageSerializeToJson(message, &base, &bytes));
  return parse_backend_config(std::string(base, bytes));
}

Backend& backend_of(TRITONBACKEND_Model* model) {
  TRITONBACKEND_Backend* backend = nullptr;
  void* state = nullptr;
  require(TRITONBACKEND_ModelBackend(model, &backend));
  require(TRITONBACKEND_BackendState(backend, &state));
  return *static_cast<Backend*>(state);
}

Backend& backend_of(TRITONBACKEND_ModelInstance* instance) {
  TRITONBACKEND_Model* model = nullptr;
  require(TRITONBACKEND_ModelInstanceModel(instance, &model));
  return backend_of(model);
}

Placements* state_of(TRITONBACKEND_Model* model) {
  void* state = nullptr;
  require(TRITONBACKEND_ModelState(model, &state));
  return static_cast<Placements*>(state);
}

// Where an instance computes. KIND_MODEL leaves the choice to us: the first GPU, if there is one.
int device_of(TRITONBACKEND_ModelInstance* instance) {
  TRITONSERVER_InstanceGroupKind kind = TRITONSERVER_INSTANCEGROUPKIND_CPU;
  require(TRITONBACKEND_ModelInstanceKind(instance, &kind));
  if (kind == TRITONSERVER_INSTANCEGROUPKIND_MODEL) {
    return cuda_built() && !cuda_devices().empty() ? 0 : kHost;
  }
  if (kind != TRITONSERVER_INSTANCEGROUPKIND_GPU) return kHost;
  int32_t device = 0;
  require(TRITONBACKEND_ModelInstanceDeviceId(instance, &device));
  return device;
}

Instance* state_of(TRITONBACKEND_ModelInstance* instance) {
  void* state = nullptr;
  require(TRITONBACKEND_ModelInstanceState(instance, &state));
  return static_cast<Instance*>(state);
}

void execute(Scheduler& scheduler, Instance& instance, TRITONBACKEND_Request* handle) noexcept {
  const ModelConfig& config = instance.model->config();
  std::unique_ptr<Request> request(new (std::nothrow) Request(instance, handle, config));
  if (request == nullptr) {
    Request(instance, handle, config).fail(TRITONSERVER_ERROR_UNAVAILABLE, "out of memory", {});
    return;
  }
  try {
    scheduler.submit(std::move(request));
  } catch (...) {
    // Out of memory: the request's destructor has answered.
  }
}

}  // namespace
}  // namespace recengine::triton

using recengine::triton::Backend;
using recengine::triton::guarded;
using recengine::triton::Instance;
using recengine::triton::Placements;
using recengine::triton::require;

RECENGINE_ENTRY TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend* backend) {
  return guarded([backend] {
    recengine::triton::check_api_version();
    auto state = std::make_unique<Backend>(recengine::triton::backend_config(backend));
    recengine::triton::log_info("recengine: " + recengine::isa_name(recengine::default_isa()) +
                                ", " + std::to_string(state->engine_options().num_streams) +
                                " threads");
    require(TRITONBACKEND_BackendSetState(backend, state.get()));
    state.release();
  });
}

// A config that does not say where to run is for the CPU: on a GPU there are single stages alone.
RECENGINE_ENTRY TRITONSERVER_Error* TRITONBACKEND_GetBackendAttribute(
    TRITONBACKEND_Backend*, TRITONBACKEND_BackendAttribute* attributes) {
  return guarded([attributes] {
    require(TRITONBACKEND_BackendAttributeAddPreferredInstanceGroup(
        attributes, TRITONSERVER_INSTANCEGROUPKIND_CPU, /*count=*/1, nullptr, 0));
  });
}

RECENGINE_ENTRY TRITONSERVER_Error* TRITONBACKEND_Finalize(TRITONBACKEND_Backend* backend) {
  return guarded([backend] {
    void* state = nullptr;
    require(TRITONBACKEND_BackendState(backend, &state));
    delete static_cast<Backend*>(state);
  });
}

RECENGINE_ENTRY TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* handle) {
  return guarded([handle] {
    auto placements = std::make_unique<Placements>(handle);
    require(TRITONBACKEND_ModelSetState(handle, placements.get()));
    placements.release();
  });
}

RECENGINE_ENTRY TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* handle) {
  return guarded([handle] {
    const std::unique_ptr<Placements> placements(recengine::triton::state_of(handle));
    if (placements != nullptr) {
      placements->unload(recengine::triton::backend_of(handle).scheduler());
    }
  });
}

RECENGINE_ENTRY TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(
    TRITONBACKEND_ModelInstance* handle) {
  return guarded([handle] {
    TRITONBACKEND_Model* model = nullptr;
    require(TRITONBACKEND_ModelInstanceModel(handle, &model));
    auto instance = std::make_unique<Instance>();
    instance->handle = handle;
    instance->model = &recengine::triton::state_of(model)->join(
        recengine::triton::device_of(handle), recengine::triton::backend_of(model));
    instance->warmups_left = instance->model->config().num_warmups;
    require(TRITONBACKEND_ModelInstanceSetState(handle, instance.get()));
    instance.release();
  });
}

RECENGINE_ENTRY TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(
    TRITONBACKEND_ModelInstance* handle) {
  return guarded([handle] {
    const std::unique_ptr<Instance> instance(recengine::triton::state_of(handle));
    if (instance == nullptr) return;  // it was never initialised
    TRITONBACKEND_Model* model = nullptr;
    require(TRITONBACKEND_ModelInstanceModel(handle, &model));
    recengine::triton::Scheduler& scheduler = recengine::triton::backend_of(model).scheduler();
    scheduler.drain(*instance);
    recengine::triton::state_of(model)->leave(*instance->model, scheduler);
  });
}

// Takes the requests and returns; the scheduler's threads answer them.
RECENGINE_ENTRY TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance* handle, TRITONBACKEND_Request** requests,
    const uint32_t request_count) {
  return guarded([=] {
    Instance& instance = *recengine::triton::state_of(handle);
    recengine::triton::Scheduler& scheduler = recengine::triton::backend_of(handle).scheduler();
    for (uint32_t i = 0; i < request_count; ++i) {
      recengine::triton::execute(scheduler, instance, requests[i]);
    }
  });
}
