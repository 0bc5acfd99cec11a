#include "triton/scheduler.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <limits>
#include <new>
#include <numeric>
#include <utility>

#include "triton/status.h"

namespace recengine::triton {
namespace {

// Share of the time that a request has left which it may be expected to spend here. The rest is for
// what cannot be seen from here: the network, and the server's threads before and after.
constexpr double kShareOfDeadline = 0.7;

// More of what is left as a batch begins, where what does not fit must wait for another that takes
// as long: it was taken in by the share above, and by an estimate that may have been too low.
constexpr double kShareOfBatch = 0.85;

// Where the next batch may begin: so many of those that wait are looked at, and one after the
// oldest is taken when its batch does so many times more rows at a time.
constexpr size_t kMostStarts = 32;
constexpr double kLeastGain = 1.25;

// Where a GPU is busy with a batch for each instance, another begins on the host when so many rows
// wait: it takes hardly less for each than a larger one.
constexpr int64_t kEnoughRows = 32;

// How long the next batch may be held for rows on their way to a later stage: so much of what it
// takes, at most so long, and not at all where that is hardly more than to sleep and wake.
constexpr double kShareHeld = 0.08;
constexpr double kMostHeldNs = 1e6;
constexpr double kLeastHeldNs = 2e5;

double elapsed_ns(uint64_t from, uint64_t to) { return to > from ? double(to - from) : 0; }

}  // namespace

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
  finished_.wait(lock, [&queue] { return queue.waiting.empty() && queue.running.empty(); });
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
  queue.arrivals.add(now_ns(), request->rows());
  arrived_rows_[static_cast<size_t>(model.config().stage)] += request->rows();
  // Who waits for it gets the lock when it is in its queue, or refused.
  follower_came_.notify_one();
  if (const std::optional<ShedReason> reason = refusal(queue, *request)) {
    lock.unlock();
    model.shed(*request, *reason);
    return;
  }
  const int64_t rows = request->rows();
  queue.waiting.push_back(std::move(request));
  queue.waiting_rows += rows;
  if (!can_start(queue)) {
    show(queue);
    return;  // who ends a batch looks for the next
  }
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
  if (queue.waiting.empty() && queue.running.empty()) return std::nullopt;
  if (queue.waiting_rows + request.rows() > queue.model->config().max_queue_rows) {
    return ShedReason::kQueueFull;
  }
  const int64_t rows = request.rows();
  const int64_t waiting = queue.waiting_rows;
  const auto threads = double(free_threads(queue));
  const double before_ns = work_before_ns(queue) / threads;
  // The new one's rows make the batches of what waits larger.
  const double waiting_ns =
      double(waiting) * (row_ns(queue, waiting + rows) + later_row_ns(queue, waiting));
  const double expected_ns =
      before_ns + waiting_ns / threads + batch_ns(queue, rows, waiting + rows);
  const double left_ns = elapsed_ns(now_ns(), request.deadline_ns());
  if (left_ns == 0 || expected_ns > kShareOfDeadline * left_ns) return ShedReason::kDeadline;
  if (is_one_too_many(queue, request, before_ns)) return ShedReason::kDeadline;
  return std::nullopt;
}

// Whether the next batch, with the new one in it, would be late for another that waits, or, with
// all that may come until it begins, for the new one. Where a batch takes hardly longer for more
// rows one of them may be refused as it begins: better the new one, and now, unless it can wait for
// the batch after that.
bool Scheduler::is_one_too_many(const Queue& queue, const Request& request,
                                double before_ns) const {
  const uint64_t now = now_ns();
  const int64_t max_rows = queue.model->config().max_batch_rows;
  const auto left_of = [&](const Request& one) {
    return elapsed_ns(now, one.deadline_ns()) - before_ns;
  };
  const auto fits = [&](const Request& one, int64_t together) {
    return batch_ns(queue, together, together) <= kShareOfDeadline * left_of(one);
  };
  const double full_ns = batch_ns(queue, max_rows, max_rows);
  if (full_ns <= kShareOfDeadline * (left_of(request) - full_ns)) return false;
  // Nothing to weigh while even a full batch is in time.
  const Request& oldest = queue.waiting.empty() ? request : *queue.waiting.front();
  if (full_ns <= kShareOfDeadline * std::min(left_of(request), left_of(oldest))) return false;
  const int64_t new_rows = request.rows();
  const bool begins_now = tasks_ < pool_.num_workers() && queue.busy_threads < pool_.num_workers();
  const double until_ns = begins_now ? 0 : before_ns;
  const auto to_come = static_cast<int64_t>(queue.arrivals.expected_rows(now, until_ns));
  const int64_t others = std::min(max_rows - new_rows, queue.waiting_rows + to_come);
  if (!fits(request, others + new_rows) && gains(queue, others, new_rows)) return true;
  int64_t rows = queue.waiting_rows;  // of this one and those behind it
  for (const std::unique_ptr<Request>& other : queue.waiting) {
    if (rows + new_rows <= max_rows) {
      if (fits(*other, rows + new_rows) || !gains(queue, rows, new_rows)) return false;
      if (fits(*other, rows)) return true;
    }
    rows -= other->rows();
  }
  return false;
}

// Whether rows take much less work in one batch with others than in two: those that do not may as
// well run before or after them.
bool Scheduler::gains(const Queue& queue, int64_t rows, int64_t others) const {
  if (rows == 0 || others == 0) return false;
  const auto work_ns = [&](int64_t count) {
    return double(count) * (row_ns(queue, count) + later_row_ns(queue, count));
  };
  return work_ns(rows) + work_ns(others) >= kLeastGain * work_ns(rows + others);
}

// Whether a batch of these rows and the others, which takes so long, is in time for one of them
// that has so much left.
bool Scheduler::is_in_time(const Queue& queue, double batch_ns, double left_ns, int64_t rows,
                           int64_t others) const {
  return batch_ns <= kShareOfDeadline * left_ns ||
         (batch_ns <= kShareOfBatch * left_ns && gains(queue, rows, others));
}

// Threads for what waits in the queue: all but those that compute batches of earlier stages, or
// all, once they have, where that is every one. A thread that only helps with a batch leaves it.
int64_t Scheduler::free_threads(const Queue& own) const {
  int64_t held = 0;
  for (const std::unique_ptr<Queue>& queue : queues_) {
    if (queue->model->config().stage >= own.model->config().stage) continue;
    held += std::count_if(queue->running.begin(), queue->running.end(),
                          [](const Batch* batch) { return batch->threads > 0; });
  }
  return held < pool_.num_workers() ? pool_.num_workers() - held : pool_.num_workers();
}

// Those threads' work before the next batch of the queue: the rest of what runs, and what waits for
// this stage in other queues or for a later one, with all stages after it. What waits in an
// earlier stage goes after it; so does what runs there on a CPU, unless all threads compute that.
double Scheduler::work_before_ns(const Queue& own) const {
  const uint64_t now = now_ns();
  const bool some_are_held = free_threads(own) < pool_.num_workers();
  double total_ns = 0;
  for (const std::unique_ptr<Queue>& queue : queues_) {
    const bool earlier = queue->model->config().stage < own.model->config().stage;
    if (earlier && some_are_held && !queue->model->is_on_device()) continue;
    int64_t rows_to_the_end = earlier || queue.get() == &own ? 0 : queue->waiting_rows;
    double work_ns = double(rows_to_the_end) * row_ns(*queue, rows_to_the_end);
    for (const Batch* batch : queue->running) {
      const double done_ns = batch->done_ns + elapsed_ns(batch->since_ns, now) * batch->share;
      work_ns += std::max(0.0, queue->cost.work_ns(batch->rows) - done_ns);
      if (!earlier) rows_to_the_end += batch->rows;
    }
    total_ns += work_ns + double(rows_to_the_end) * later_row_ns(*queue, rows_to_the_end);
  }
  return total_ns;
}

// How long rows take to their answers in a batch of so many together, with the stages after this
// one, over whose batches and threads they spread.
double Scheduler::batch_ns(const Queue& queue, int64_t rows, int64_t together) const {
  const double later_rows = std::max(1.0, double(rows) / pool_.num_workers());
  return double(rows) * row_ns(queue, together) / double(threads_of(queue, rows)) +
         later_rows * later_row_ns(queue, static_cast<int64_t>(later_rows));
}

// One thread's work on a row where so many run together, or as many of them as a batch holds.
double Scheduler::row_ns(const Queue& queue, int64_t rows) {
  const int64_t together = std::clamp<int64_t>(rows, 1, queue.model->config().max_batch_rows);
  return queue.cost.work_ns(together) / double(together);
}

// One thread's work on a row, of so many, in the stages after this one. Of several models of a
// stage the least that is known: a model that refuses for another's sake would never learn better,
// the later stage can still refuse. What dense graphs take in other backends is not seen from here.
double Scheduler::later_row_ns(const Queue& queue, int64_t rows) const {
  std::array<double, kNumStages> stages_ns{};
  for (const std::unique_ptr<Queue>& later : queues_) {
    const Stage stage = later->model->config().stage;
    if (stage <= queue.model->config().stage) continue;
    const double known_ns = row_ns(*later, rows);
    double& least_ns = stages_ns[static_cast<size_t>(stage)];
    if (known_ns > 0) least_ns = least_ns == 0 ? known_ns : std::min(least_ns, known_ns);
  }
  return std::accumulate(stages_ns.begin(), stages_ns.end(), 0.0);
}

int64_t Scheduler::threads_of(const Queue& queue, int64_t rows) const {
  return queue.model->threads_worth(rows, pool_.num_workers());
}

bool Scheduler::can_start(const Queue& queue) const {
  if (queue.waiting.empty()) return false;
  if (queue.busy_threads < pool_.num_workers()) return true;
  const int64_t enough = std::min(kEnoughRows, queue.model->config().max_batch_rows);
  return queue.model->is_on_device() && queue.waiting_rows >= enough;
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

void Scheduler::push_front(Queue& queue, std::unique_ptr<Request> request) {
  const int64_t rows = request->rows();
  queue.waiting.push_front(std::move(request));
  queue.waiting_rows += rows;
}

// What a free thread takes at once never shows: it would cost every request.
void Scheduler::show(Queue& queue) noexcept {
  if (queue.shown_rows == queue.waiting_rows) return;
  queue.shown_rows = queue.waiting_rows;
  queue.model->show_waiting(queue.waiting_rows);
}

// Which of those that wait the next batch begins with: the oldest, unless it has so little time
// left that the batch would be small, and a later one so much more that the batch does more at a
// time. Otherwise, where a batch takes hardly longer for more rows, a crowd would be answered one
// by one: each waits for those before it until it has as little time left as they had.
size_t Scheduler::first_of_batch(const Queue& queue, uint64_t now) const {
  const auto& waiting = queue.waiting;
  if (waiting.size() == 1) return 0;
  const int64_t max_rows = queue.model->config().max_batch_rows;
  std::vector<int64_t> rows_before = {0};
  for (const std::unique_ptr<Request>& request : waiting) {
    rows_before.push_back(rows_before.back() + request->rows());
  }
  // How many requests from this one on fit in a batch, and its rows in a nanosecond of a thread;
  // none where it is late itself.
  const auto batch_from = [&](size_t first) {
    const double left_ns = elapsed_ns(now, waiting[first]->deadline_ns());
    const int64_t own_rows = waiting[first]->rows();
    if (batch_ns(queue, own_rows, own_rows) > left_ns) return std::pair(size_t{0}, 0.0);
    const auto rows_to = [&](size_t end) { return rows_before[end] - rows_before[first]; };
    size_t end = first + 1;
    for (size_t most = waiting.size(); end < most;) {
      const size_t middle = (end + most + 1) / 2;
      const int64_t rows = rows_to(middle);
      const bool fits = rows <= max_rows && is_in_time(queue, batch_ns(queue, rows, rows), left_ns,
                                                       own_rows, rows - own_rows);
      (fits ? end : most) = fits ? middle : middle - 1;
    }
    const double one_row_ns = row_ns(queue, rows_to(end)) + later_row_ns(queue, rows_to(end));
    return std::pair(end - first, one_row_ns > 0 ? 1 / one_row_ns : 0);
  };
  const auto [count, speed] = batch_from(0);
  if (count == waiting.size() || rows_before[count + 1] > max_rows) return 0;
  const size_t step = (waiting.size() + kMostStarts - 1) / kMostStarts;
  std::vector<double> speeds = {speed};
  for (size_t first = step; first < waiting.size(); first += step) {
    speeds.push_back(batch_from(first).second);
  }
  const double enough = *std::max_element(speeds.begin(), speeds.end()) / kLeastGain;
  const auto found = std::find_if(speeds.begin(), speeds.end(),
                                  [enough](double other) { return other >= enough; });
  return static_cast<size_t>(found - speeds.begin()) * step;
}

Scheduler::Batch Scheduler::take(Queue& queue) {
  const int64_t max_rows = queue.model->config().max_batch_rows;
  const uint64_t now = now_ns();
  Batch batch;
  const auto left_of = [now](const Request& request) {
    return elapsed_ns(now, request.deadline_ns());
  };
  const auto alone_ns = [&](const Request& request) {
    return batch_ns(queue, request.rows(), request.rows());
  };
  const auto is_late = [&](const Request& request, double before_ns) {
    const double left_ns = left_of(request);
    return left_ns == 0 || before_ns + alone_ns(request) > left_ns;
  };
  while (!queue.waiting.empty() && is_late(*queue.waiting.front(), 0)) {
    batch.late.push_back(pop(queue));
  }
  // When all look late, the latest to come is tried: the estimate may be what is wrong.
  if (queue.waiting.empty()) {
    if (batch.late.back()->deadline_ns() > now_ns()) {
      batch.rows = batch.late.back()->rows();
      batch.requests.push_back(std::move(batch.late.back()));
      batch.late.pop_back();
    }
    return batch;
  }
  size_t first = 0;
  try {
    first = first_of_batch(queue, now);
  } catch (const std::bad_alloc&) {
    // The oldest, as ever.
  }
  Requests skipped;
  for (; first > 0; --first) skipped.push_back(pop(queue));
  double first_left_ns = std::numeric_limits<double>::infinity();
  double expected_ns = 0;
  while (!queue.waiting.empty()) {
    const Request& next = *queue.waiting.front();
    const int64_t rows = batch.rows + next.rows();
    const double with_it_ns = batch_ns(queue, rows, rows);
    // The answers of a batch come all at its end, so each request in it delays the others.
    const double left_ns = std::min(first_left_ns, left_of(next));
    const bool fits =
        rows <= max_rows && is_in_time(queue, with_it_ns, left_ns, batch.rows, next.rows());
    if (!batch.requests.empty() && !fits) break;
    first_left_ns = left_ns;
    expected_ns = with_it_ns;
    batch.rows = rows;
    batch.requests.push_back(pop(queue));
  }
  // Those that were skipped come next, or at once where another thread is free.
  const bool is_last = queue.busy_threads + threads_of(queue, batch.rows) >= pool_.num_workers();
  for (; !skipped.empty(); skipped.pop_back()) {
    if (is_late(*skipped.back(), is_last ? expected_ns : 0)) {
      batch.late.push_back(std::move(skipped.back()));
    } else {
      push_front(queue, std::move(skipped.back()));
    }
  }
  return batch;
}

// Whether rows come to stages after this one, as they do in an ensemble.
bool Scheduler::is_followed(const Queue& queue) const {
  const uint64_t now = now_ns();
  const auto is_later = [&](const std::unique_ptr<Queue>& other) {
    return other->model->config().stage > queue.model->config().stage &&
           other->arrivals.expected_rows(now, 1) > 0;
  };
  return std::any_of(queues_.begin(), queues_.end(), is_later);
}

// Rows that have come to stages after this one, ever.
int64_t Scheduler::rows_after(Stage stage) const {
  const auto first = arrived_rows_.begin() + static_cast<std::ptrdiff_t>(stage) + 1;
  return std::accumulate(first, arrived_rows_.end(), int64_t{0});
}

// How long the queue's next batch should wait yet for what another passed on to a later stage, by
// way of the server: begun before that, with no thread left for it, it would delay answers that are
// nearly done by all the time it takes. `since` is when the thread began to wait.
double Scheduler::hold_ns(const Queue& queue, uint64_t since) const {
  if (is_held_ || tasks_ < pool_.num_workers()) return 0;
  if (queue.model->config().stage > passed_on_.stage) return 0;
  if (rows_after(passed_on_.stage) >= passed_on_.rows_after) return 0;
  const int64_t rows = std::min(queue.waiting_rows, queue.model->config().max_batch_rows);
  const double next_ns = double(rows) * row_ns(queue, rows) / double(threads_of(queue, rows));
  const double most_ns = std::min(kMostHeldNs, kShareHeld * next_ns);
  if (most_ns < kLeastHeldNs) return 0;
  return std::max(0.0, most_ns - elapsed_ns(std::min(passed_on_.at_ns, since), now_ns()));
}

void Scheduler::serve(std::unique_lock<std::mutex>& lock) noexcept {
  uint64_t since = now_ns();  // its last batch, or its call
  while (Queue* queue = next_queue()) {
    if (const double held_ns = hold_ns(*queue, since); held_ns > 0) {
      is_held_ = true;
      follower_came_.wait_for(lock, std::chrono::nanoseconds(static_cast<int64_t>(held_ns)));
      is_held_ = false;
      continue;
    }
    try {
      run_next(*queue, lock);
    } catch (...) {
      // Out of memory while taking a batch: the destructors of its requests have answered.
      if (!lock.owns_lock()) lock.lock();
    }
    since = now_ns();
    finished_.notify_all();
  }
}

void Scheduler::run_next(Queue& queue, std::unique_lock<std::mutex>& lock) {
  Batch batch = take(queue);
  show(queue);
  queue.running.push_back(&batch);  // nothing below throws
  batch.threads = batch.rows == 0 ? 0 : threads_of(queue, batch.rows);
  queue.busy_threads += batch.threads;
  share_threads();
  if (can_start(queue)) call_worker(lock);
  if (lock.owns_lock()) lock.unlock();
  for (const std::unique_ptr<Request>& request : batch.late) {
    queue.model->shed(*request, ShedReason::kDeadline);
  }
  const bool began_late = !batch.late.empty();
  batch.late.clear();
  if (!batch.requests.empty()) {
    if (began_late) begin_work(batch);
    const bool is_warmup = batch.requests.front()->is_warmup();
    std::optional<int64_t> came_before;  // to later stages
    const auto computed = [&] { came_before = end_turn(queue, batch); };
    const int64_t rows = queue.model->run(std::move(batch.requests), std::ref(computed));
    if (!came_before) computed();
    lock.lock();
    share_threads();
    if (rows > 0) {
      queue.cost.learn(rows, batch.done_ns, is_warmup);
      if (is_followed(queue)) {
        passed_on_ = {queue.model->config().stage, *came_before + rows, now_ns()};
      }
    }
    if (is_warmup) {
      lock.unlock();
      queue.model->reserve_memory();
      lock.lock();
    }
  } else {
    lock.lock();
  }
  queue.running.erase(std::find(queue.running.begin(), queue.running.end(), &batch));
  share_threads();
}

// Which batch has how many threads from now on, and what each has had so far: each has the one that
// runs it, the others help those that are computed by more than one, evenly as far as is known
// here. On a GPU a batch has its instance's share while it is computed, whatever else runs.
void Scheduler::share_threads() {
  const uint64_t now = now_ns();
  int64_t batches = 0;
  int64_t helped = 0;
  for (const std::unique_ptr<Queue>& queue : queues_) {
    for (Batch* batch : queue->running) {
      batch->done_ns += elapsed_ns(batch->since_ns, now) * batch->share;
      batch->since_ns = now;
      ++batches;
      if (batch->threads > 1 && !queue->model->is_on_device()) ++helped;
    }
  }
  const double helpers = double(std::max<int64_t>(pool_.num_workers() - batches, 0));
  const double most = 1 + helpers / double(std::max<int64_t>(helped, 1));
  for (const std::unique_ptr<Queue>& queue : queues_) {
    for (Batch* batch : queue->running) {
      const double threads = std::max(1.0, double(batch->threads));
      batch->share = queue->model->is_on_device() ? threads : std::min(threads, most);
    }
  }
}

// What it took to refuse those that are late is not the batch's.
void Scheduler::begin_work(Batch& batch) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  batch.since_ns = now_ns();
  batch.done_ns = 0;
}

int64_t Scheduler::end_turn(Queue& queue, Batch& batch) noexcept {
  std::unique_lock<std::mutex> lock(mutex_);
  queue.busy_threads -= batch.threads;
  batch.threads = 0;
  share_threads();
  const int64_t came = rows_after(queue.model->config().stage);
  if (can_start(queue)) call_worker(lock);
  return came;
}

}  // namespace recengine::triton
