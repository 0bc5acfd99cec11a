#include "cpu/thread_pool.h"

#include <pthread.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <string>
#include <utility>

#include "recengine/error.h"

namespace recengine {

namespace {

// Asks Linux for the longest time slice, at the same share of the CPU: a thread that wakes with a
// short one then runs at once. A server's request passes through five such threads, and each would
// otherwise wait for a slice of a computing worker. Kernels before 6.12 ignore it.
void take_long_slices() {
  struct {
    uint32_t size = 48;
    uint32_t policy = 0;  // SCHED_OTHER
    uint64_t flags = 0;
    int32_t nice = 0;
    uint32_t priority = 0;
    uint64_t slice_ns = 100'000'000;
    uint64_t deadline_ns = 0;
    uint64_t period_ns = 0;
  } attributes;
  attributes.nice = getpriority(PRIO_PROCESS, 0);
  syscall(SYS_sched_setattr, 0, &attributes, 0u);
}

// Returns when the condition holds or the time is over.
template <typename Condition>
void spin_until(std::chrono::microseconds time, Condition condition) {
  const auto end = std::chrono::steady_clock::now() + time;
  while (!condition() && std::chrono::steady_clock::now() < end) __builtin_ia32_pause();
}

}  // namespace

struct ThreadPool::Loop {
  void* callable;
  void (*call)(void*, int64_t);
  int64_t num_chunks;
  std::atomic<int64_t> next{0};
  std::atomic<int> helpers{0};  // workers inside; changed under mutex_
  std::exception_ptr error;     // the first; guarded by mutex_
  std::condition_variable left;
  Loop* link = nullptr;
};

ThreadPool::ThreadPool(int num_workers, std::chrono::microseconds spin) : spin_(spin) {
  if (num_workers < 0) {
    throw InputError("[thread_pool] num_workers: expected at least 0, found " +
                     std::to_string(num_workers));
  }
  workers_.reserve(static_cast<size_t>(num_workers));
  for (int i = 0; i < num_workers; ++i) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    announce();
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::submit(std::function<void()> task) {
  if (workers_.empty()) throw InputError("[thread_pool] submit: the pool has no worker");
  {
    std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back(std::move(task));
    waiting_tasks_.store(tasks_.size(), std::memory_order_relaxed);
    announce();
  }
  wake_.notify_one();
}

void ThreadPool::run_loop(int64_t num_chunks, void* callable, void (*call)(void*, int64_t)) {
  if (num_chunks <= 1 || workers_.empty()) {
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) call(callable, chunk);
    return;
  }
  Loop loop;
  loop.callable = callable;
  loop.call = call;
  loop.num_chunks = num_chunks;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    loop.link = loops_;
    loops_ = &loop;
    announce();
  }
  const int64_t wanted = std::min<int64_t>(num_chunks - 1, num_workers());
  for (int64_t i = 0; i < wanted; ++i) wake_.notify_one();

  run_chunks(loop, false);
  std::unique_lock<std::mutex> lock(mutex_);
  Loop** place = &loops_;
  while (*place != &loop) place = &(*place)->link;
  *place = loop.link;
  if (spin_.count() > 0 && loop.helpers > 0) {
    lock.unlock();
    spin_until(spin_, [&loop] { return loop.helpers == 0; });
    lock.lock();
  }
  loop.left.wait(lock, [&loop] { return loop.helpers == 0; });
  if (loop.error) std::rethrow_exception(loop.error);
}

// Chunks of the loop until none is left or, if asked, a task waits for a worker.
void ThreadPool::run_chunks(Loop& loop, bool until_task) {
  while (!until_task || waiting_tasks_.load(std::memory_order_relaxed) == 0) {
    const int64_t chunk = loop.next.fetch_add(1, std::memory_order_relaxed);
    if (chunk >= loop.num_chunks) return;
    try {
      loop.call(loop.callable, chunk);
    } catch (...) {
      loop.next.store(loop.num_chunks, std::memory_order_relaxed);
      std::lock_guard<std::mutex> lock(mutex_);
      if (!loop.error) loop.error = std::current_exception();
      return;
    }
  }
}

ThreadPool::Loop* ThreadPool::open_loop() const {
  Loop* loop = loops_;
  while (loop != nullptr && loop->next.load(std::memory_order_relaxed) >= loop->num_chunks) {
    loop = loop->link;
  }
  return loop;
}

void ThreadPool::announce() { announced_.fetch_add(1, std::memory_order_relaxed); }

void ThreadPool::wait_for_work(std::unique_lock<std::mutex>& lock, std::chrono::microseconds spin) {
  const uint64_t seen = announced_.load(std::memory_order_relaxed);
  const auto changed = [&] { return announced_.load(std::memory_order_relaxed) != seen; };
  if (spin.count() > 0) {
    lock.unlock();
    spin_until(spin, changed);
    lock.lock();
  }
  wake_.wait(lock, changed);
}

void ThreadPool::work() {
  pthread_setname_np(pthread_self(), "recengine");  // what profilers and `top -H` show
  take_long_slices();
  std::chrono::microseconds spin{};
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    // Tasks first: a loop has its caller, a task nobody until a worker takes it.
    if (!tasks_.empty()) {
      std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      waiting_tasks_.store(tasks_.size(), std::memory_order_relaxed);
      lock.unlock();
      task();
      task = nullptr;
      lock.lock();
      spin = {};
    } else if (Loop* loop = open_loop()) {
      ++loop->helpers;
      lock.unlock();
      run_chunks(*loop, true);
      lock.lock();
      if (--loop->helpers == 0) loop->left.notify_all();
      spin = spin_;
    } else if (stopping_) {
      return;
    } else {
      wait_for_work(lock, spin);
      spin = {};
    }
  }
}

}  // namespace recengine
