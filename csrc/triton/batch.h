#pragma once

#include <memory>
#include <vector>

#include "recengine/engine.h"
#include "triton/config.h"
#include "triton/request.h"

namespace recengine::triton {

using Requests = std::vector<std::unique_ptr<Request>>;

// Reads `requests`, runs them as one engine call (one per width of candidates) and answers each.
// A request that is refused or fails does so alone. Statistics are reported.
void run_batch(const ModelConfig& config, const Schema& schema, const Engine& engine,
               Requests requests);

}  // namespace recengine::triton
