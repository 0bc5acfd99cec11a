#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "cpu/thread_pool.h"
#include "triton/arrivals.h"
#include "triton/batch_cost.h"
#include "triton/model.h"
#include "triton/request.h"

namespace recengine::triton {

// The bounded queues of all models, and the tasks on the thread pool that empty them. A free task
// takes what waits for one model, up to a full batch: batches grow with the load. While a model's
// batches keep all threads busy, what comes waits for the next batch instead of sharing the
// threads: large batches take less for each row. Later stages go first, so that work already begun
// is finished.
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

  // Queues a request, or sheds it: queue full, or a deadline cannot be met, its own or another's.
  void submit(std::unique_ptr<Request> request);

 private:
  struct Batch {
    Requests requests;
    Requests late;  // cannot make their deadline any more
    int64_t rows = 0;
    int64_t threads = 0;  // that it keeps busy; 0 once it is computed
    double share = 0;     // that it has of them since the moment below: batches share the threads
    uint64_t since_ns = 0;
    double done_ns = 0;  // one thread's work on it until then
  };
  struct Queue {
    const Model* model = nullptr;
    std::deque<std::unique_ptr<Request>> waiting;
    int64_t waiting_rows = 0;
    int64_t shown_rows = 0;  // of them, as the metric says
    std::vector<Batch*> running;
    int64_t busy_threads = 0;  // that those which still compute keep busy
    BatchCost cost;
    Arrivals arrivals;
  };

  // What a batch answered, for the server to pass on to a later stage.
  struct PassedOn {
    Stage stage{};
    int64_t rows_after = 0;  // once its rows have come there, or as many of others before
    uint64_t at_ns = 0;
  };

  // These need the lock.
  std::optional<ShedReason> refusal(const Queue& queue, const Request& request) const;
  bool is_one_too_many(const Queue& queue, const Request& request, double before_ns) const;
  bool gains(const Queue& queue, int64_t rows, int64_t others) const;
  bool is_in_time(const Queue& queue, double batch_ns, double left_ns, int64_t rows,
                  int64_t others) const;
  int64_t free_threads(const Queue& own) const;
  double work_before_ns(const Queue& own) const;
  double batch_ns(const Queue& queue, int64_t rows, int64_t together) const;
  double later_row_ns(const Queue& queue, int64_t rows) const;
  static double row_ns(const Queue& queue, int64_t rows);
  int64_t threads_of(const Queue& queue, int64_t rows) const;
  bool can_start(const Queue& queue) const;
  bool is_followed(const Queue& queue) const;
  int64_t rows_after(Stage stage) const;
  double hold_ns(const Queue& queue, uint64_t since) const;
  void share_threads();
  Queue& queue_of(const Model& model);
  Queue* next_queue();
  static std::unique_ptr<Request> pop(Queue& queue);
  static void push_front(Queue& queue, std::unique_ptr<Request> request);
  static void show(Queue& queue) noexcept;
  Batch take(Queue& queue);
  size_t first_of_batch(const Queue& queue, uint64_t now) const;

  // Has one more thread serve, unless all do; may release the lock. False, with the lock, when
  // there is no memory for that: then the caller must serve, at the latest when its batch is
  // answered.
  bool call_worker(std::unique_lock<std::mutex>& lock) noexcept;

  // Runs batches until no queue has one that can start; takes and leaves the lock locked.
  void serve(std::unique_lock<std::mutex>& lock) noexcept;
  void run_next(Queue& queue, std::unique_lock<std::mutex>& lock);
  void begin_work(Batch& batch) noexcept;
  // Returns how many rows have come to later stages: those of this batch come after them.
  int64_t end_turn(Queue& queue, Batch& batch) noexcept;

  ThreadPool& pool_;
  std::mutex mutex_;
  std::condition_variable finished_;
  std::condition_variable follower_came_;
  std::vector<std::unique_ptr<Queue>> queues_;
  std::array<int64_t, kNumStages> arrived_rows_{};  // by stage
  PassedOn passed_on_;
  bool is_held_ = false;  // a batch, by the thread that waits for followers
  int tasks_ = 0;         // on the pool: threads that serve, or soon will
};

}  // namespace recengine::triton
