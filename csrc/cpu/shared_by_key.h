#pragma once

#include <map>
#include <memory>
#include <mutex>

namespace recengine {

// One object for each key, for all who hold it at the same time.
template <typename Key, typename T>
class SharedByKey {
 public:
  // make() gives a std::shared_ptr<T> when nobody holds the object.
  template <typename Make>
  std::shared_ptr<T> get(const Key& key, const Make& make) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto entry = entries_.begin(); entry != entries_.end();) {
      entry = entry->second.expired() ? entries_.erase(entry) : std::next(entry);
    }
    std::weak_ptr<T>& kept = entries_[key];
    std::shared_ptr<T> object = kept.lock();
    if (object == nullptr) {
      object = make();
      kept = object;
    }
    return object;
  }

 private:
  std::mutex mutex_;
  std::map<Key, std::weak_ptr<T>> entries_;
};

}  // namespace recengine
