#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace recengine {

// Worker threads that run submitted tasks and help callers with their loops. A loop's caller works
// on it itself, so no more threads compute than workers + callers and nothing waits for a free one.
class ThreadPool {
 public:
  // `spin`: how long a thread that was part of a loop looks for the next before it sleeps. Waking a
  // thread takes tens of microseconds, and one search is a few loops.
  explicit ThreadPool(int num_workers, std::chrono::microseconds spin = {});

  // Joins after what was submitted is finished.
  ~ThreadPool();

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_workers() const { return static_cast<int>(workers_.size()); }

  // Runs `task` on a worker, in order of submission; one that helps with a loop leaves it for the
  // task after its chunk. The task must not throw. Throws InputError when the pool has no worker.
  void submit(std::function<void()> task);

  // Calls body(chunk) once for every chunk in [0, num_chunks) on the caller and on workers that are
  // idle, and returns when all are done. May be called inside a task or another loop. After a chunk
  // throws, those not begun are skipped and the first exception leaves here.
  template <typename Body>
  void parallel_for(int64_t num_chunks, Body&& body) {
    using Callable = std::remove_reference_t<Body>;
    run_loop(num_chunks, const_cast<void*>(static_cast<const void*>(&body)),
             [](void* callable, int64_t chunk) { (*static_cast<Callable*>(callable))(chunk); });
  }

 private:
  struct Loop;

  void run_loop(int64_t num_chunks, void* callable, void (*call)(void*, int64_t));
  void run_chunks(Loop& loop, bool until_task);
  Loop* open_loop() const;  // a loop with chunks left; needs mutex_
  void announce();          // that there is work; needs mutex_
  void wait_for_work(std::unique_lock<std::mutex>& lock, std::chrono::microseconds spin);
  void work();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  std::atomic<size_t> waiting_tasks_{0};  // their number; changed under mutex_
  Loop* loops_ = nullptr;                 // those running now, linked through the callers' stacks
  bool stopping_ = false;
  const std::chrono::microseconds spin_;
  std::atomic<uint64_t> announced_{0};
  std::vector<std::thread> workers_;
};

// Threads that run a loop: the caller, and those of the pool if there is one.
inline int64_t threads_of(const ThreadPool* pool) {
  return pool == nullptr ? 1 : int64_t{pool->num_workers()} + 1;
}

// parallel_for() on the pool, or in order on the calling thread when there is none.
template <typename Body>
void for_each(ThreadPool* pool, int64_t count, Body&& body) {
  if (pool != nullptr) {
    pool->parallel_for(count, body);
  } else {
    for (int64_t i = 0; i < count; ++i) body(i);
  }
}

}  // namespace recengine
