#include "engine/device_tables.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <numeric>
#include <optional>
#include <set>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/shared_by_key.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr auto kRefreshPeriod = std::chrono::seconds(1);

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
      is_first = true;
      if (table_->view().cache == nullptr) return;
      try {
        refresher_ = std::thread([this] { keep_refreshing(); });
      } catch (...) {
        table_.reset();  // the next who asks loads it again
        throw;
      }
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
      } catch (const DeviceError&) {
        return;  // the rows that are held stay, and calls tell what is wrong with the device
      } catch (const std::exception&) {
        // Out of memory: the next time, maybe.
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

constexpr int64_t kWhole = -1;

// `cache_bytes`: of the device's memory, where rows are on the host; else kWhole.
std::shared_ptr<LoadedTable> shared_table(const Manifest& manifest, const TableSpec& spec,
                                          int device, int64_t cache_bytes) {
  using Key =
      std::tuple<int, int64_t, RowType, int64_t, int32_t, Contents, std::optional<Contents>>;
  static SharedByKey<Key, LoadedTable> all;
  std::optional<Contents> scales;
  if (spec.scales) scales = contents_of(manifest, *spec.scales);
  return all.get({device, cache_bytes, spec.row_type, spec.rows, spec.dim,
                  contents_of(manifest, spec.data), scales},
                 [] { return std::make_shared<LoadedTable>(); });
}

}  // namespace

DeviceTables::DeviceTables(const Manifest& manifest, const Assets& assets, int device,
                           int64_t budget) {
  std::vector<std::pair<int64_t, std::string>> by_size;
  for (const auto& [name, spec] : manifest.tables) {
    by_size.emplace_back(DeviceTable::bytes_of_copy(assets.table(name)), name);
  }
  std::sort(by_size.begin(), by_size.end());
  std::set<const LoadedTable*> counted;
  const auto add = [&](const std::string& name, int64_t cache_bytes) {
    const EmbeddingTable& table = assets.table(name);
    const auto loaded = shared_table(manifest, manifest.tables.at(name), device, cache_bytes);
    const bool is_first = loaded->load([&] {
      return cache_bytes == kWhole ? DeviceTable::copy(table, device)
                                   : DeviceTable::spill(table, device, cache_bytes);
    });
    EmbeddingTable view = loaded->table().view();
    view.name = name;
    tables_.emplace(name, Entry{loaded, std::move(view)});
    if (!counted.insert(loaded.get()).second) return;
    bytes_ += loaded->table().device_bytes();
    if (!is_first) bytes_shared_ += loaded->table().device_bytes();
  };
  int64_t left = budget == 0 ? INT64_MAX : budget;
  auto next = by_size.begin();
  for (; next != by_size.end() && next->first <= left; ++next) {
    add(next->second, kWhole);
    left -= next->first;
  }
  const double spilled = std::accumulate(
      next, by_size.end(), 0.0,
      [](double sum, const auto& table) { return sum + static_cast<double>(table.first); });
  for (; next != by_size.end(); ++next) {
    const double share = static_cast<double>(next->first) / spilled;
    add(next->second, static_cast<int64_t>(share * static_cast<double>(left)));
  }
}

}  // namespace recengine
