#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "recengine/engine.h"
#include "triton/config.h"
#include "triton/request.h"

namespace recengine::triton {

using Requests = std::vector<std::unique_ptr<Request>>;

// Reads `requests`, runs them as one engine call (one per width of candidates) and answers each.
// A request that is refused or fails does so alone. Statistics are reported. `computed` is called
// before the answers of the last call are sent; not when that call fails.
void run_batch(const ModelConfig& config, const Schema& schema, const Engine& engine,
               Requests requests, const std::function<void()>& computed);

}  // namespace recengine::triton
