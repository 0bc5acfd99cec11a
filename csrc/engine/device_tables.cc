#include "engine/device_tables.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <numeric>
#include <optional>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/shared_by_key.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr auto kRefreshPeriod = std::chrono::seconds(1);

int64_t bytes_of(const EmbeddingTable& table) {
  const int64_t scale_bytes = table.scales == nullptr ? 0 : int64_t{sizeof(float)};
  return table.rows * (table.row_bytes + scale_bytes);
}

using Digests = std::vector<std::string>;
using Contents = std::pair<Digests, std::string>;  // of a file, and which tensor of it

Contents contents_of(const Manifest& manifest, const TensorName& name) {
  return {manifest.files.at(name.file).sha256, name.tensor};
}

}  // namespace

// A table on a GPU. The hot rows of one whose rows are on the host are kept up to date.
class LoadedTable {
 public:
  ~LoadedTable() {
    if (!refresher_.joinable()) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      end_ = true;
    }
    ended_.notify_all();
    refresher_.join();
  }

  // make() gives the table to the first who asks; others wait for that. Returns whether it was
  // called.
  template <typename Make>
  bool load(const Make& make) {
    bool is_first = false;
    std::call_once(once_, [&] {
      table_.emplace(make());
      if (table_->view().cache != nullptr) refresher_ = std::thread([this] { keep_refreshing(); });
      is_first = true;
    });
    return is_first;
  }

  const DeviceTable& table() const { return *table_; }

 private:
  void keep_refreshing() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!ended_.wait_for(lock, kRefreshPeriod, [this] { return end_; })) {
      lock.unlock();
      try {
        table_->refresh();
      } catch (const std::exception&) {
        return;  // the rows that are held stay, and calls tell what is wrong with the device
      }
      lock.lock();
    }
  }

  std::once_flag once_;
  std::optional<DeviceTable> table_;
  std::mutex mutex_;
  std::condition_variable ended_;
  bool end_ = false;
  std::thread refresher_;
};

namespace {

enum class Place { kDevice, kHost };

std::shared_ptr<LoadedTable> shared_table(const Manifest& manifest, const TableSpec& spec,
                                          int device, Place place) {
  using Key = std::tuple<int, Place, RowType, Contents, std::optional<Contents>>;
  static SharedByKey<Key, LoadedTable> all;
  std::optional<Contents> scales;
  if (spec.scales) scales = contents_of(manifest, *spec.scales);
  return all.get({device, place, spec.row_type, contents_of(manifest, spec.data), scales},
                 [] { return std::make_shared<LoadedTable>(); });
}

}  // namespace

DeviceTables::DeviceTables(const Manifest& manifest, const Assets& assets, int device,
                           int64_t budget) {
  std::vector<std::pair<int64_t, std::string>> by_size;
  for (const auto& [name, spec] : manifest.tables) {
    by_size.emplace_back(bytes_of(assets.table(name)), name);
  }
  std::sort(by_size.begin(), by_size.end());
  const auto add = [&](const std::string& name, Place place, const auto& make) {
    const auto table = shared_table(manifest, manifest.tables.at(name), device, place);
    const bool taken = table->load(make);
    EmbeddingTable view = table->table().view();
    view.name = name;
    bytes_ += table->table().device_bytes();
    if (taken) bytes_taken_ += table->table().device_bytes();
    tables_.emplace(name, Entry{table, std::move(view)});
  };
  int64_t left = budget == 0 ? INT64_MAX : budget;
  auto next = by_size.begin();
  for (; next != by_size.end() && next->first <= left; ++next) {
    const EmbeddingTable& table = assets.table(next->second);
    add(next->second, Place::kDevice, [&] { return DeviceTable::copy(table, device); });
    left -= next->first;
  }
  const double spilled = std::accumulate(
      next, by_size.end(), 0.0,
      [](double sum, const auto& table) { return sum + static_cast<double>(table.first); });
  for (; next != by_size.end(); ++next) {
    const double share = static_cast<double>(next->first) / spilled;
    const auto cache_bytes = static_cast<int64_t>(share * static_cast<double>(left));
    const EmbeddingTable& table = assets.table(next->second);
    add(next->second, Place::kHost, [&] { return DeviceTable::spill(table, device, cache_bytes); });
  }
}

DeviceTables::~DeviceTables() = default;

}  // namespace recengine
