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

// What recent batches of a model say about how long new ones will take; smoothed, in ns.
struct LoadEstimate {
  double batch_ns = 0;  // from being taken to being answered; 0: not known
  double row_ns = 0;    // the share of one of its rows

  void record(int64_t rows, double duration_ns);
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
    int64_t waiting_rows = 0;
    int64_t running_rows = 0;
    int running = 0;  // batches
    LoadEstimate estimate;
  };
  struct Batch {
    Requests requests;
    Requests late;  // cannot make their deadline any more
    int64_t rows = 0;
  };

  // These need the lock.
  std::optional<ShedReason> refusal(const Queue& queue, const Request& request) const;
  double later_stages(const Queue& queue, double LoadEstimate::* expected_ns) const;
  double backlog_ns() const;
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
