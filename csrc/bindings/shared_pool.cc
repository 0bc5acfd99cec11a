#include "bindings/shared_pool.h"

#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "recengine/error.h"

namespace recengine {

namespace {

// Calls from Python come one after the other. Longer than what is between the end of a thread's
// part of one and the next: others' last chunks, the answer, the caller's own work. To wake a core
// that sleeps takes 50 us of both threads in a virtual machine.
constexpr std::chrono::microseconds kSpin(200);

}  // namespace

ThreadPool* shared_pool(int threads) {
  if (threads < 1 || threads > 1024) {
    throw InputError("[threads] expected 1 to 1024, found " + std::to_string(threads));
  }
  if (threads == 1) return nullptr;
  // Never destroyed: joining at exit would hang in a forked child, which has no workers.
  static auto& mutex = *new std::mutex;
  static auto& pools = *new std::map<int, std::unique_ptr<ThreadPool>>;
  std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<ThreadPool>& pool = pools[threads];
  if (pool == nullptr) pool = std::make_unique<ThreadPool>(threads - 1, kSpin);
  return pool.get();
}

}  // namespace recengine
