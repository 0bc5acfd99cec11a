#include "triton/scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "triton/status.h"

namespace recengine::triton {
namespace {

// An estimate that is too high refuses work in vain: it comes down faster than it goes up.
constexpr double kSmoothingUp = 1.0 / 8;
constexpr double kSmoothingDown = 1.0 / 4;

// Share of its deadline that a request may be expected to spend here. The rest is for what cannot
// be seen from here: the network, and the server's threads before and after.
constexpr double kShareOfDeadline = 0.5;

// A thread of the server serves only what is short, and gives way to the pool after some batches.
constexpr double kShortBatchNs = 1e6;
constexpr int kBatchesOfGuest = 64;
constexpr int kAllBatches = std::numeric_limits<int>::max();

void smooth(double& value, double sample) {
  const double share = sample > value ? kSmoothingUp : kSmoothingDown;
  value = value == 0 ? sample : value + share * (sample - value);
}

double elapsed_ns(uint64_t from, uint64_t to) { return to > from ? double(to - from) : 0; }

}  // namespace

void LoadEstimate::record(int64_t rows, bool full, uint64_t oldest_arrival_ns, uint64_t start_ns,
                          uint64_t end_ns) {
  smooth(batch_ns, elapsed_ns(start_ns, end_ns));
  smooth(latency_ns, elapsed_ns(oldest_arrival_ns, end_ns));
  if (full) {
    smooth(row_ns, elapsed_ns(std::max(last_end_ns, oldest_arrival_ns), end_ns) / double(rows));
  }
  last_end_ns = end_ns;
}

Scheduler::~Scheduler() {
  std::unique_lock<std::mutex> lock(mutex_);
  finished_.wait(lock, [this] { return servers_ == 0; });
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

void Scheduler::submit(Requests requests, bool may_serve) {
  const Model& model = *requests.front()->instance().model;
  std::vector<std::pair<std::unique_ptr<Request>, ShedReason>> refused;
  std::unique_lock<std::mutex> lock(mutex_);
  Queue& queue = queue_of(model);
  for (std::unique_ptr<Request>& request : requests) {
    if (const std::optional<ShedReason> reason = refusal(queue, *request)) {
      refused.emplace_back(std::move(request), *reason);
      continue;
    }
    const int64_t rows = request->rows();
    queue.waiting.push_back(std::move(request));
    queue.rows += rows;
  }
  const bool wanted = !queue.waiting.empty() && servers_ < pool_.num_workers();
  may_serve = may_serve && queue.estimate.batch_ns < kShortBatchNs;
  if (wanted) ++servers_;
  lock.unlock();
  for (const auto& [request, reason] : refused) model.shed(*request, reason);
  refused.clear();
  if (!wanted) return;
  if (may_serve) {
    serve(kBatchesOfGuest);
  } else {
    hand_over();
  }
}

std::optional<ShedReason> Scheduler::refusal(const Queue& queue, const Request& request) const {
  if (request.is_warmup()) return std::nullopt;
  // An idle model always tries: what it learns corrects an estimate that is too high.
  if (queue.waiting.empty() && queue.running == 0) return std::nullopt;
  if (queue.rows + request.rows() > queue.model->config().max_queue_rows) {
    return ShedReason::kQueueFull;
  }
  const double expected_ns = double(queue.rows) * queue.estimate.row_ns + remaining_ns(queue);
  const double granted_ns = elapsed_ns(request.arrival_ns(), request.deadline_ns());
  if (expected_ns > kShareOfDeadline * granted_ns) return ShedReason::kDeadline;
  return std::nullopt;
}

double Scheduler::remaining_ns(const Queue& queue) const {
  double later_ns = 0;  // the stages that come after this one
  for (const std::unique_ptr<Queue>& other : queues_) {
    if (other->model->config().stage > queue.model->config().stage) {
      later_ns = std::max(later_ns, other->estimate.latency_ns);
    }
  }
  return queue.estimate.batch_ns + later_ns;
}

Scheduler::Queue& Scheduler::queue_of(const Model& model) {
  return **std::find_if(queues_.begin(), queues_.end(),
                        [&model](const auto& queue) { return queue->model == &model; });
}

Scheduler::Queue* Scheduler::next_queue() {
  Queue* best = nullptr;
  for (const std::unique_ptr<Queue>& queue : queues_) {
    if (queue->waiting.empty()) continue;
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
  queue.rows -= request->rows();
  return request;
}

Scheduler::Batch Scheduler::take(Queue& queue) {
  const int64_t max_rows = queue.model->config().max_batch_rows;
  const auto done_ns = now_ns() + static_cast<uint64_t>(remaining_ns(queue));
  Batch batch;
  while (!queue.waiting.empty()) {
    const Request& next = *queue.waiting.front();
    if (next.deadline_ns() < done_ns) {
      batch.late.push_back(pop(queue));
      continue;
    }
    batch.full = batch.rows + next.rows() >= max_rows;
    if (!batch.requests.empty() && batch.rows + next.rows() > max_rows) break;
    batch.rows += next.rows();
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

void Scheduler::hand_over() noexcept {
  try {
    pool_.submit([this] { serve(kAllBatches); });
  } catch (...) {
    serve(kAllBatches);  // out of memory: what is queued is answered all the same
  }
}

void Scheduler::serve(int max_batches) noexcept {
  std::unique_lock<std::mutex> lock(mutex_);
  while (Queue* queue = next_queue()) {
    if (max_batches-- == 0) {
      lock.unlock();
      hand_over();
      return;
    }
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
  --servers_;
  finished_.notify_all();
}

void Scheduler::run_next(Queue& queue, std::unique_lock<std::mutex>& lock) {
  Batch batch = take(queue);
  lock.unlock();
  for (const std::unique_ptr<Request>& request : batch.late) {
    queue.model->shed(*request, ShedReason::kDeadline);
  }
  batch.late.clear();
  if (!batch.requests.empty()) {
    const uint64_t oldest_arrival_ns = batch.requests.front()->arrival_ns();
    const uint64_t start_ns = now_ns();
    queue.model->run(std::move(batch.requests));
    const uint64_t end_ns = now_ns();
    lock.lock();
    queue.estimate.record(batch.rows, batch.full, oldest_arrival_ns, start_ns, end_ns);
    return;
  }
  lock.lock();
}

}  // namespace recengine::triton
