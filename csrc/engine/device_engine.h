#pragma once

#include <memory>
#include <string>

#include "recengine/context.h"
#include "recengine/engine.h"

namespace recengine {

// The engine of a version directory on a GPU: single stages, without dense graphs. Tables, index
// and item vocabulary are copied to the device; of the host it keeps the mapped files.
std::unique_ptr<Engine> load_on_device(const std::string& directory, int device, ThreadPool& pool);

}  // namespace recengine
