// Writers, searches and merges at the same time on one LiveItemIndex, for ThreadSanitizer; and what
// happens when memory runs out. Ends with status 1 and a message when an answer is wrong.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <new>
#include <random>
#include <thread>
#include <vector>

#include "cpu/thread_pool.h"
#include "recengine/live_item_index.h"

namespace {

std::atomic<size_t> most_bytes{std::numeric_limits<size_t>::max()};
std::atomic<int> refusals{0};

}  // namespace

// Refuses allocations of more than most_bytes. Not inlined: GCC warns of malloc beside delete.
[[gnu::noinline]] void* operator new(size_t bytes) {
  void* const memory = bytes > most_bytes ? nullptr : std::malloc(std::max(bytes, size_t{1}));
  if (memory != nullptr) return memory;
  ++refusals;
  throw std::bad_alloc();
}

// ThreadSanitizer has its own for arrays.
[[gnu::noinline]] void* operator new[](size_t bytes) { return operator new(bytes); }
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, size_t) noexcept { std::free(memory); }

namespace recengine {
namespace {

constexpr int64_t kItems = 20'000;  // times kDim: enough for 8-bit codes
constexpr int64_t kDim = 32;
constexpr int64_t kMarkers = 3;  // rows that a writer always replaces together
constexpr int64_t kWriters = 2;
constexpr int64_t kVersions = 200;  // of each writer's markers
constexpr unsigned kBatches = 100;  // of items that are appended, and then removed together
constexpr int64_t kBatch = 40;
constexpr int64_t kLargeBatch = 5000;  // every 20th, so that a merge begins by itself

void check(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::exit(1);
}

using Vectors = std::vector<float>;

Matrix<const float> as_rows(const Vectors& vectors) {
  return {vectors.data(), static_cast<int64_t>(vectors.size()) / kDim, kDim};
}

// Items that score 0 for every writer's query: the first dimensions belong to the writers.
Vectors random_items(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  Vectors vectors(static_cast<size_t>(count * kDim), 0.0f);
  for (int64_t i = 0; i < count * kDim; ++i) {
    if (i % kDim >= 2 * kWriters) vectors[static_cast<size_t>(i)] = uniform(random);
  }
  return vectors;
}

// kMarkers equal vectors that score less for the writer's query with every version.
Vectors markers(int64_t writer, int64_t version) {
  Vectors vectors(static_cast<size_t>(kMarkers * kDim), 0.0f);
  const double angle = 0.5 + 0.002 * static_cast<double>(version);
  for (int64_t i = 0; i < kMarkers; ++i) {
    vectors[static_cast<size_t>(i * kDim + 2 * writer)] = static_cast<float>(std::cos(angle));
    vectors[static_cast<size_t>(i * kDim + 2 * writer + 1)] = static_cast<float>(std::sin(angle));
  }
  return vectors;
}

Vectors query_of(int64_t writer) {
  Vectors query(static_cast<size_t>(kDim), 0.0f);
  query[static_cast<size_t>(2 * writer)] = 1;
  return query;
}

struct Answer {
  std::vector<int64_t> rows;
  std::vector<float> scores;
};

template <typename Index>
Answer search(const Context& context, const Index& index, const Vectors& query, int64_t k) {
  Answer answer{std::vector<int64_t>(static_cast<size_t>(k)),
                std::vector<float>(static_cast<size_t>(k))};
  TopKQuery wanted;
  wanted.queries = as_rows(query);
  cosine_topk(context, index, wanted, {answer.rows.data(), 1, k}, {answer.scores.data(), 1, k});
  return answer;
}

// The version that has this score, to the bit.
std::map<float, int64_t> versions_by_score(const Context& context, int64_t writer) {
  std::map<float, int64_t> versions;
  for (int64_t version = 0; version <= kVersions; ++version) {
    const ItemIndex items = ItemIndex::build(as_rows(markers(writer, version)));
    versions[search(context, items, query_of(writer), 1).scores[0]] = version;
  }
  check(versions.size() == kVersions + 1, "every version has a score of its own");
  return versions;
}

// What one writer has begun and ended to write.
struct Progress {
  std::atomic<int64_t> begun{0};
  std::atomic<int64_t> ended{0};
};

class Stress {
 public:
  Stress() : pool_(2), index_(as_rows(random_items(kItems, 1))) {
    for (int64_t writer = 0; writer < kWriters; ++writer) {
      first_[writer] = index_.append(as_rows(markers(writer, 0)));
      versions_[writer] = versions_by_score(alone_, writer);
    }
  }

  void run() {
    std::vector<std::thread> writers;
    std::vector<std::thread> others;
    for (int64_t w = 0; w < kWriters; ++w) writers.emplace_back([this, w] { replace(w); });
    writers.emplace_back([this] { append_and_remove(); });
    for (const Context& context : {alone_, Context{&pool_, default_isa()}}) {
      others.emplace_back([this, context] { search_until_done(context); });
    }
    others.emplace_back([this] {
      while (!done_) index_.merge();
    });
    others.emplace_back([this] {
      while (!done_) check_copy();
    });
    for (std::thread& writer : writers) writer.join();
    done_ = true;
    for (std::thread& other : others) other.join();
    index_.merge();
    check(index_.pending() == 0, "nothing waits after a merge");
    check(index_.size() == kItems - kBatches + kWriters * kMarkers, "what was to be removed was");
    check_removed_from_base();
    for (int64_t w = 0; w < kWriters; ++w) check_answer(alone_, w);
  }

 private:
  // The markers, all of one version, which is between those ended before and begun after.
  void check_answer(const Context& context, int64_t writer) {
    const int64_t before = progress_[writer].ended;
    const Answer answer = search(context, index_, query_of(writer), kMarkers);
    const int64_t after = progress_[writer].begun;
    const auto version = versions_[writer].find(answer.scores[0]);
    check(version != versions_[writer].end(), "a score is that of some version");
    check(before <= version->second && version->second <= after, "the version is a present one");
    for (int64_t i = 0; i < kMarkers; ++i) {
      check(answer.rows[static_cast<size_t>(i)] == first_[writer] + i, "the rows are the markers");
      check(answer.scores[static_cast<size_t>(i)] == answer.scores[0], "one version in an answer");
    }
  }

  // The items that a search has seen: each writer's markers of one version, which it found.
  void check_copy() {
    const int64_t writer = 0;
    const Vectors query = query_of(writer);
    int64_t row = 0;
    float score = 0;
    LiveItems items;
    TopKQuery wanted;
    wanted.queries = as_rows(query);
    cosine_topk(alone_, index_, wanted, {&row, 1, 1}, {&score, 1, 1}, nullptr, &items);
    const auto place = std::lower_bound(items.rows.begin(), items.rows.end(), row);
    check(place != items.rows.end() && *place == first_[writer], "the marker is among the items");
    const float* const unit = items.unit_vectors.get() + (place - items.rows.begin()) * kDim;
    check(unit[2 * writer] == score, "the marker is of the version that was found");
    for (int64_t i = 1; i < kMarkers; ++i) {
      check(std::equal(unit, unit + kDim, unit + i * kDim), "one version in a copy");
    }
  }

  void replace(int64_t writer) {
    std::vector<int64_t> rows;
    for (int64_t i = 0; i < kMarkers; ++i) rows.push_back(first_[writer] + i);
    for (int64_t version = 1; version <= kVersions; ++version) {
      progress_[writer].begun = version;
      index_.replace(rows, as_rows(markers(writer, version)));
      progress_[writer].ended = version;
      check_answer(alone_, writer);
    }
  }

  void append_and_remove() {
    for (unsigned batch = 0; batch < kBatches; ++batch) {
      const int64_t count = batch % 20 == 0 ? kLargeBatch : kBatch;
      const Vectors items = random_items(count, 2 + batch);
      const int64_t first = index_.append(as_rows(items));
      const Vectors query(items.begin(), items.begin() + kDim);
      check(search(alone_, index_, query, 1).rows[0] == first, "what was appended is found");
      std::vector<int64_t> rows = {batch};
      for (int64_t i = 0; i < count; ++i) rows.push_back(first + i);
      index_.remove(rows);
      check(search(alone_, index_, query, 1).rows[0] < first, "what was removed is not found");
    }
  }

  // Rows of the base that were removed while merges were packing it.
  void check_removed_from_base() const {
    const Vectors items = random_items(kItems, 1);
    for (int64_t row = 0; row < int64_t{kBatches}; ++row) {
      const Vectors query(items.begin() + row * kDim, items.begin() + (row + 1) * kDim);
      check(search(alone_, index_, query, 1).rows[0] != row, "what was removed is not found");
    }
  }

  void search_until_done(const Context& context) {
    while (!done_) {
      for (int64_t writer = 0; writer < kWriters; ++writer) check_answer(context, writer);
    }
  }

  ThreadPool pool_;
  const Context alone_ = {nullptr, default_isa()};
  LiveItemIndex index_;
  int64_t first_[kWriters] = {};
  std::map<float, int64_t> versions_[kWriters];
  Progress progress_[kWriters];
  std::atomic<bool> done_{false};
};

bool refuses(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::bad_alloc&) {
    return true;
  }
  return false;
}

void wait_for(const char* what, const std::function<bool()>& condition) {
  for (int i = 0; i < 60'000 && !condition(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  check(condition(), what);
}

void run_out_of_memory() {
  const Context context = {nullptr, default_isa()};
  LiveItemIndex index(as_rows(random_items(2 * kItems, 1)));
  const Vectors few = random_items(100, 2);
  const Vectors many = random_items(5000, 3);
  const Vectors query = query_of(0);

  most_bytes = 1000;
  check(refuses([&] { index.append(as_rows(few)); }), "no memory to append");
  most_bytes = size_t{4} << 20;  // too little for a base, enough for a delta
  check(index.rows() == 2 * kItems && index.pending() == 0, "a write that fails changes nothing");

  refusals = 0;
  index.append(as_rows(many));
  wait_for("a merge begins by itself", [] { return refusals == 1; });
  const Answer before = search(context, index, query, 10);
  for (int i = 0; i < 10; ++i) index.append(as_rows(few));
  check(refusals == 1, "a merge that failed is not tried again at once");
  for (int i = 0; i < 2; ++i) index.append(as_rows(many));
  wait_for("it is tried again when the delta has doubled", [] { return refusals == 2; });

  most_bytes = std::numeric_limits<size_t>::max();
  check(refuses([&] { index.merge(); }), "merge() throws what was kept");
  check(index.pending() == 16'000, "a merge that fails changes nothing");
  index.merge();
  check(index.pending() == 0 && index.rows() == 2 * kItems + 16'000, "then it merges");
  check(search(context, index, query, 10).rows == before.rows, "and answers as before");
}

}  // namespace
}  // namespace recengine

int main() {
  recengine::Stress().run();
  recengine::run_out_of_memory();
}
