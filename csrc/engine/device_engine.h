#pragma once

#include <memory>
#include <string>

#include "recengine/context.h"
#include "recengine/engine.h"

namespace recengine {

// The engine of a version directory on a GPU: single stages, without dense graphs. Tables, index
// and item vocabulary are copied to the device; of the host it keeps the mapped files, and the rows
// of tables that the device has no room for.
std::unique_ptr<Engine> load_on_device(const std::string& directory, const EngineOptions& options,
                                       ThreadPool& pool);

}  // namespace recengine
