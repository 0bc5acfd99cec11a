#include "engine/device_tables.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>
#include <vector>

#include "recengine/error.h"

namespace recengine {
namespace {

constexpr auto kRefreshPeriod = std::chrono::seconds(1);

int64_t bytes_of(const EmbeddingTable& table) {
  const int64_t scale_bytes = table.scales == nullptr ? 0 : int64_t{sizeof(float)};
  return table.rows * (table.row_bytes + scale_bytes);
}

}  // namespace

DeviceTables::DeviceTables(const Manifest& manifest, const Assets& assets, int device,
                           int64_t budget) {
  std::vector<std::pair<int64_t, std::string>> by_size;
  for (const auto& [name, spec] : manifest.tables) {
    by_size.emplace_back(bytes_of(assets.table(name)), name);
  }
  std::sort(by_size.begin(), by_size.end());
  int64_t left = budget == 0 ? INT64_MAX : budget;
  auto next = by_size.begin();
  for (; next != by_size.end() && next->first <= left; ++next) {
    tables_.emplace(next->second, DeviceTable::copy(assets.table(next->second), device));
    left -= next->first;
  }
  const double spilled = std::accumulate(
      next, by_size.end(), 0.0,
      [](double sum, const auto& table) { return sum + static_cast<double>(table.first); });
  for (; next != by_size.end(); ++next) {
    const double share = static_cast<double>(next->first) / spilled;
    const auto cache_bytes = static_cast<int64_t>(share * static_cast<double>(left));
    tables_.emplace(next->second,
                    DeviceTable::spill(assets.table(next->second), device, cache_bytes));
  }
  if (spilled > 0) refresher_ = std::thread([this] { keep_refreshing(); });
}

DeviceTables::~DeviceTables() {
  if (!refresher_.joinable()) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    end_ = true;
  }
  ended_.notify_all();
  refresher_.join();
}

void DeviceTables::keep_refreshing() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!ended_.wait_for(lock, kRefreshPeriod, [this] { return end_; })) {
    lock.unlock();
    try {
      for (const auto& [name, table] : tables_) table.refresh();
    } catch (const std::exception&) {
      return;  // the rows that are held stay, and calls tell what is wrong with the device
    }
    lock.lock();
  }
}

}  // namespace recengine
