#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "recengine/device_slot.h"
#include "recengine/engine.h"
#include "triton/config.h"
#include "triton/metrics.h"
#include "triton/request.h"

namespace recengine::triton {

using Requests = std::vector<std::unique_ptr<Request>>;

// What the batches of a model run on.
struct BatchRunner {
  const ModelConfig& config;
  const Schema& schema;
  const Engine& engine;
  DeviceSlots* slots;     // of the engine's GPU; null on the host
  const Metric& replays;  // of a GPU's graphs
};

// Reads `requests`, runs them as one engine call (one per width of candidates) and answers each.
// A request that is refused or fails does so alone. Statistics are reported. `computed` is called
// before the answers of the last call are sent; not when that call fails. Returns how many rows
// were computed; 0 when a call failed.
int64_t run_batch(const BatchRunner& runner, Requests requests,
                  const std::function<void()>& computed);

}  // namespace recengine::triton
