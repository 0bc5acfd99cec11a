#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "engine/assets.h"
#include "engine/manifest.h"
#include "recengine/device_table.h"

namespace recengine {

class LoadedTable;

// The tables of a version directory for a GPU. Engines of a process share those that hold the same
// rows, by the checksums of their files: both lookups of a recommender, and a version that is
// published while the one before serves.
class DeviceTables {
 public:
  // Of at most `budget` bytes of the device's memory; 0 is no limit. The smallest tables are there
  // whole. What is left holds hot rows of the others, in proportion to their sizes; every second
  // those that were read most become the ones that are held. Whoever loads a table first decides
  // how much of it is held.
  DeviceTables(const Manifest& manifest, const Assets& assets, int device, int64_t budget);
  ~DeviceTables();
  DeviceTables(const DeviceTables&) = delete;
  DeviceTables& operator=(const DeviceTables&) = delete;

  const EmbeddingTable& view(const std::string& name) const { return tables_.at(name).view; }

  // Of the device's memory that they are in, and what of it was taken for them.
  int64_t bytes() const { return bytes_; }
  int64_t bytes_taken() const { return bytes_taken_; }

 private:
  struct Entry {
    std::shared_ptr<LoadedTable> table;
    EmbeddingTable view;
  };

  std::map<std::string, Entry> tables_;
  int64_t bytes_ = 0;
  int64_t bytes_taken_ = 0;
};

}  // namespace recengine
