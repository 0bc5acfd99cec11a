#include "triton/scheduler.h"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include "triton/status.h"

namespace recengine::triton {
namespace {

// An estimate that is too high refuses work in vain: it comes down faster than it goes up.
constexpr double kSmoothingUp = 1.0 / 8;
constexpr double kSmoothingDown = 1.0 / 2;

// Share of its deadline that a request may be expected to spend here. The rest is for what cannot
// be seen from here: the network, and the server's threads before and after. Later stages have less
// of that before them, and to refuse there is to have worked for nothing.
constexpr double kShareOfDeadline = 0.6;
constexpr double kLastShareOfDeadline = 0.8;

// A batch of so many rows takes hardly less for each than a larger one.
constexpr int64_t kEnoughRows = 32;

constexpr size_t kNumStages = static_cast<size_t>(Stage::kRanking) + 1;

void smooth(double& value, double sample) {
  const double share = sample > value ? kSmoothingUp : kSmoothingDown;
  value = value == 0 ? sample : value + share * (sample - value);
}

double elapsed_ns(uint64_t from, uint64_t to) { return to > from ? double(to - from) : 0; }

}  // namespace

void LoadEstimate::record(int64_t rows, double duration_ns, double work_ns) {
  smooth(batch_ns, duration_ns);
  smooth(row_ns, work_ns / double(rows));
}

Scheduler::~Scheduler() {
  std::unique_lock<std::mutex> lock(mutex_);
  finished_.wait(lock, [this] { return tasks_ == 0; });
}

void Scheduler::add(const Model& model) {
  auto queue = std::make_unique<Queue>();
  queue->model = &model;
  const std::lock_guard<std::mutex> lock(mutex_);
  queues_.push_back(std::move(queue));
}

void Scheduler::remove(const Model& model) {
  std::unique_lock<std::mutex> lock(mutex_);
  Queue& queue = queue_of(model);
  finished_.wait(lock, [&queue] { return queue.waiting.empty() && queue.running == 0; });
  const auto is_it = [&queue](const std::unique_ptr<Queue>& other) {
    return other.get() == &queue;
  };
  queues_.erase(std::find_if(queues_.begin(), queues_.end(), is_it));
}

void Scheduler::drain(const Instance& instance) {
  std::unique_lock<std::mutex> lock(mutex_);
  finished_.wait(lock, [&instance] { return instance.pending.load() == 0; });
}

void Scheduler::submit(std::unique_ptr<Request> request) {
  const Model& model = *request->instance().model;
  std::unique_lock<std::mutex> lock(mutex_);
  Queue& queue = queue_of(model);
  if (const std::optional<ShedReason> reason = refusal(queue, *request)) {
    lock.unlock();
    model.shed(*request, *reason);
    return;
  }
  const int64_t rows = request->rows();
  queue.waiting.push_back(std::move(request));
  queue.waiting_rows += rows;
  if (!can_start(queue)) return;        // who ends a batch looks for the next
  if (!call_worker(lock)) serve(lock);  // what is queued is answered all the same
}

bool Scheduler::call_worker(std::unique_lock<std::mutex>& lock) noexcept {
  if (tasks_ == pool_.num_workers()) return true;
  ++tasks_;
  lock.unlock();
  try {
    pool_.submit([this] {
      std::unique_lock<std::mutex> own(mutex_);
      serve(own);
      // Under the lock that found nothing to do: who comes later calls another thread.
      --tasks_;
      finished_.notify_all();
    });
    return true;
  } catch (...) {
    lock.lock();
    --tasks_;
    finished_.notify_all();
    return false;
  }
}

std::optional<ShedReason> Scheduler::refusal(const Queue& queue, const Request& request) const {
  if (request.is_warmup()) return std::nullopt;
  // An idle model always tries: what it learns corrects an estimate that is too high.
  if (queue.waiting.empty() && queue.running == 0) return std::nullopt;
  if (queue.waiting_rows + request.rows() > queue.model->config().max_queue_rows) {
    return ShedReason::kQueueFull;
  }
  const double expected_ns = backlog_ns() / pool_.num_workers() + queue.estimate.batch_ns +
                             later_stages(queue, &LoadEstimate::batch_ns);
  const Stage stage = queue.model->config().stage;
  const bool last = stage == Stage::kRanking || stage == Stage::kOrder;
  const double share = last ? kLastShareOfDeadline : kShareOfDeadline;
  const double granted_ns = elapsed_ns(request.arrival_ns(), request.deadline_ns());
  if (expected_ns > share * granted_ns) return ShedReason::kDeadline;
  return std::nullopt;
}

// What is expected of the stages after this one: the time of a batch, or of a row. What dense
// graphs take in other backends is not seen from here.
double Scheduler::later_stages(const Queue& queue, double LoadEstimate::* expected_ns) const {
  std::array<double, kNumStages> later_ns{};
  for (const std::unique_ptr<Queue>& other : queues_) {
    const Stage stage = other->model->config().stage;
    if (stage <= queue.model->config().stage) continue;
    double& longest_ns = later_ns[static_cast<size_t>(stage)];
    longest_ns = std::max(longest_ns, other->estimate.*expected_ns);
  }
  return std::accumulate(later_ns.begin(), later_ns.end(), 0.0);
}

// Work on all that was taken in and is not answered, later stages included, for one thread.
double Scheduler::backlog_ns() const {
  double total_ns = 0;
  for (const std::unique_ptr<Queue>& queue : queues_) {
    const int64_t rows = queue->waiting_rows + queue->running_rows;
    total_ns +=
        double(rows) * (queue->estimate.row_ns + later_stages(*queue, &LoadEstimate::row_ns));
  }
  return total_ns;
}

int64_t Scheduler::threads_of(const Queue& queue, int64_t rows) const {
  return std::min<int64_t>(queue.model->threads_worth(rows), pool_.num_workers());
}

bool Scheduler::can_start(const Queue& queue) const {
  if (queue.waiting.empty()) return false;
  const int64_t enough = std::min(kEnoughRows, queue.model->config().max_batch_rows);
  return queue.busy_threads < pool_.num_workers() || queue.waiting_rows >= enough;
}

Scheduler::Queue& Scheduler::queue_of(const Model& model) {
  return **std::find_if(queues_.begin(), queues_.end(),
                        [&model](const auto& queue) { return queue->model == &model; });
}

Scheduler::Queue* Scheduler::next_queue() {
  Queue* best = nullptr;
  for (const std::unique_ptr<Queue>& queue : queues_) {
    if (!can_start(*queue)) continue;
    const auto rank = [](const Queue& candidate) {
      const auto later_first = -static_cast<int>(candidate.model->config().stage);
      return std::pair(later_first, candidate.waiting.front()->arrival_ns());
    };
    if (best == nullptr || rank(*queue) < rank(*best)) best = queue.get();
  }
  return best;
}

std::unique_ptr<Request> Scheduler::pop(Queue& queue) {
  std::unique_ptr<Request> request = std::move(queue.waiting.front());
  queue.waiting.pop_front();
  queue.waiting_rows -= request->rows();
  return request;
}

Scheduler::Batch Scheduler::take(Queue& queue) {
  const int64_t max_rows = queue.model->config().max_batch_rows;
  const uint64_t now = now_ns();
  const double later_ns = later_stages(queue, &LoadEstimate::batch_ns);
  uint64_t first_deadline_ns = std::numeric_limits<uint64_t>::max();
  Batch batch;
  while (!queue.waiting.empty()) {
    const Request& next = *queue.waiting.front();
    // The answers of a batch come all at its end, so each request in it delays the others.
    const int64_t rows = batch.rows + next.rows();
    const uint64_t deadline_ns = std::min(first_deadline_ns, next.deadline_ns());
    const double work_ns = double(rows) * queue.estimate.row_ns;
    const bool in_time =
        work_ns / double(threads_of(queue, rows)) + later_ns <= elapsed_ns(now, deadline_ns);
    if (batch.requests.empty() && !in_time) {
      batch.late.push_back(pop(queue));
      continue;
    }
    if (!batch.requests.empty() && (!in_time || rows > max_rows)) break;
    first_deadline_ns = deadline_ns;
    batch.rows = rows;
    batch.requests.push_back(pop(queue));
  }
  // When all look late, the latest to come is tried: the estimate may be what is wrong.
  if (batch.requests.empty() && batch.late.back()->deadline_ns() > now_ns()) {
    batch.rows = batch.late.back()->rows();
    batch.requests.push_back(std::move(batch.late.back()));
    batch.late.pop_back();
  }
  return batch;
}

void Scheduler::serve(std::unique_lock<std::mutex>& lock) noexcept {
  while (Queue* queue = next_queue()) {
    ++queue->running;
    try {
      run_next(*queue, lock);
    } catch (...) {
      // Out of memory while taking a batch: the destructors of its requests have answered.
      if (!lock.owns_lock()) lock.lock();
    }
    --queue->running;
    finished_.notify_all();
  }
}

void Scheduler::run_next(Queue& queue, std::unique_lock<std::mutex>& lock) {
  Batch batch = take(queue);
  const int64_t threads = batch.rows == 0 ? 0 : threads_of(queue, batch.rows);
  queue.running_rows += batch.rows;
  queue.busy_threads += threads;
  // Batches that share the threads have their part of them.
  const double busy = double(std::max<int64_t>(queue.busy_threads, 1));
  const double used = double(threads) * std::min(1.0, double(pool_.num_workers()) / busy);
  if (can_start(queue)) call_worker(lock);
  if (lock.owns_lock()) lock.unlock();
  for (const std::unique_ptr<Request>& request : batch.late) {
    queue.model->shed(*request, ShedReason::kDeadline);
  }
  batch.late.clear();
  if (!batch.requests.empty()) {
    const bool is_warmup = batch.requests.front()->is_warmup();
    const uint64_t start_ns = now_ns();
    uint64_t computed_ns = 0;
    const auto computed = [&] {
      computed_ns = now_ns();
      end_turn(queue, threads);
    };
    queue.model->run(std::move(batch.requests), std::ref(computed));
    if (computed_ns == 0) computed();
    const uint64_t end_ns = now_ns();
    const double work_ns =
        elapsed_ns(start_ns, computed_ns) * used + elapsed_ns(computed_ns, end_ns);
    lock.lock();
    queue.running_rows -= batch.rows;
    if (!is_warmup) queue.estimate.record(batch.rows, elapsed_ns(start_ns, end_ns), work_ns);
    return;
  }
  lock.lock();
}

void Scheduler::end_turn(Queue& queue, int64_t threads) noexcept {
  std::unique_lock<std::mutex> lock(mutex_);
  queue.busy_threads -= threads;
  if (can_start(queue)) call_worker(lock);
}

}  // namespace recengine::triton
