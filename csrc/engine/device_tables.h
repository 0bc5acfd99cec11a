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

// The tables of a version directory for a GPU. Engines of a process share a table that lies in
// files of the same contents, by their checksums: a version that is published while the one before
// serves takes memory for what is new in it.
class DeviceTables {
 public:
  // Of at most `budget` bytes of the device's memory; 0 is no limit. The smallest tables are there
  // whole. What is left holds hot rows of the others, in proportion to their sizes; every second
  // those that were read most become the ones that are held. Tables of which other parts are held
  // are not shared.
  DeviceTables(const Manifest& manifest, const Assets& assets, int device, int64_t budget);
  DeviceTables(const DeviceTables&) = delete;
  DeviceTables& operator=(const DeviceTables&) = delete;

  const EmbeddingTable& view(const std::string& name) const { return tables_.at(name).view; }

  // Of the device's memory, and what of it other engines had loaded before.
  int64_t bytes() const { return bytes_; }
  int64_t bytes_shared() const { return bytes_shared_; }

 private:
  struct Entry {
    std::shared_ptr<LoadedTable> table;
    EmbeddingTable view;
  };

  std::map<std::string, Entry> tables_;
  int64_t bytes_ = 0;
  int64_t bytes_shared_ = 0;
};

}  // namespace recengine
