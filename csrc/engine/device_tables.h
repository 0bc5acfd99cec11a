#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "engine/assets.h"
#include "engine/manifest.h"
#include "recengine/device_table.h"

namespace recengine {

// The tables of a version directory for a GPU.
class DeviceTables {
 public:
  // Of at most `budget` bytes of the device's memory; 0 is no limit. The smallest tables are there
  // whole. What is left holds hot rows of the others, in proportion to their sizes; every second
  // those that were read most become the ones that are held.
  DeviceTables(const Manifest& manifest, const Assets& assets, int device, int64_t budget);
  ~DeviceTables();
  DeviceTables(const DeviceTables&) = delete;
  DeviceTables& operator=(const DeviceTables&) = delete;

  const EmbeddingTable& view(const std::string& name) const { return tables_.at(name).view(); }

 private:
  void keep_refreshing();

  std::map<std::string, DeviceTable> tables_;
  std::mutex mutex_;
  std::condition_variable ended_;
  bool end_ = false;
  std::thread refresher_;  // where rows are spilled
};

}  // namespace recengine
