#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "cpu/thread_pool.h"
#include "triton/model.h"
#include "triton/request.h"

namespace recengine::triton {

// What recent batches of a model say about how long a new request will take; smoothed, in ns.
struct LoadEstimate {
  double batch_ns = 0;    // from being taken to being answered
  double row_ns = 0;      // between rows leaving a long queue, all workers together; 0: not known
  double latency_ns = 0;  // from arrival to answer
  uint64_t last_end_ns = 0;

  // `full`: the batch had as many rows as it may have, so its pace is that of a long queue.
  void record(int64_t rows, bool full, uint64_t oldest_arrival_ns, uint64_t start_ns,
              uint64_t end_ns);
};

// The bounded queues of all models, and the tasks on the thread pool that empty them. A task takes
// what waits for one model, up to a full batch, as soon as it is free: batches grow with the load.
// Later stages go first, so that work already begun is finished.
class Scheduler {
 public:
  explicit Scheduler(ThreadPool& pool) : pool_(pool) {}

  // Returns once its tasks have left the pool; all models were removed before.
  ~Scheduler();

  void add(const Model& model);

  // Returns once no batch of the model runs; its instances were drained before.
  void remove(const Model& model);

  // Returns once every request that came through the instance is answered and released.
  void drain(const Instance& instance);

  // Queues a request, or sheds it: queue full, or its deadline cannot be met.
  void submit(std::unique_ptr<Request> request);

 private:
  struct Queue {
    const Model* model = nullptr;
    std::deque<std::unique_ptr<Request>> waiting;
    int64_t rows = 0;  // waiting
    int running = 0;   // batches
    LoadEstimate estimate;
  };
  struct Batch {
    Requests requests;
    Requests late;  // cannot make their deadline any more
    int64_t rows = 0;
    bool full = false;
  };

  // These need the lock.
  std::optional<ShedReason> refusal(const Queue& queue, const Request& request) const;
  double remaining_ns(const Queue& queue) const;
  Queue& queue_of(const Model& model);
  Queue* next_queue();
  static std::unique_ptr<Request> pop(Queue& queue);
  Batch take(Queue& queue);

  void serve() noexcept;
  void run_next(Queue& queue, std::unique_lock<std::mutex>& lock);

  ThreadPool& pool_;
  std::mutex mutex_;
  std::condition_variable finished_;
  std::vector<std::unique_ptr<Queue>> queues_;
  int tasks_ = 0;  // handed to the pool and not ended
};

}  // namespace recengine::triton
