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

// The bounded queues of all models, and the threads that empty them: as many at a time as the pool
// has workers. A thread takes what waits for one model, up to a full batch, as soon as it is free:
// batches grow with the load. Later stages go first, so that work already begun is finished.
//
// A thread of the server that brings requests becomes one of them when there is room, which saves
// a small request two thread switches; what it leaves behind goes to the pool.
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

  // Queues each request or sheds it, because the queue is full or its deadline cannot be met. May
  // serve some batches before it returns, unless this is the last thread that could bring more.
  void submit(Requests requests, bool may_serve);

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

  // Serves until nothing waits or `max_batches` are done; returns with a permit given up or, when
  // work is left, handed to the pool.
  void serve(int max_batches) noexcept;
  void hand_over() noexcept;
  void run_next(Queue& queue, std::unique_lock<std::mutex>& lock);

  ThreadPool& pool_;
  std::mutex mutex_;
  std::condition_variable finished_;
  std::vector<std::unique_ptr<Queue>> queues_;
  int servers_ = 0;  // threads that serve, or tasks on the pool that will
};

}  // namespace recengine::triton
