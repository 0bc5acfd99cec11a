#pragma once

#include <string>

#include "engine/assets.h"
#include "engine/bundle_files.h"
#include "engine/manifest.h"
#include "recengine/engine.h"

namespace recengine {

// What every engine has of its version directory. The later ones borrow from the earlier ones.
struct Version {
  // Throws BundleError naming the file when anything is missing, damaged or unknown.
  Version(const std::string& directory, ThreadPool& pool, Residence resident);

  bool has(Stage stage) const;

  Manifest manifest;
  BundleFiles files;
  Assets assets;
  Schema schema;
};

// Throws InputError unless the engine has the stage.
void require_stage(const Engine& engine, Stage stage);

}  // namespace recengine
