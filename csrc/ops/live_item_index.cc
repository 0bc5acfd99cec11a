#include "recengine/live_item_index.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "ops/item_snapshot.h"
#include "recengine/error.h"

namespace recengine {
namespace {

// Vectors in the delta above which it is merged: enough that merges are rare, few enough that a
// search, which reads them at 4 bytes a value, hardly notices.
constexpr int64_t kLeastMerged = 4096;
constexpr int64_t kDeltaShare = 64;

// Dead rows of the base above which it is packed anew: they take memory, and hardly any time.
constexpr int64_t kDeadShare = 8;

constexpr std::chrono::milliseconds kPoll(1);

void expect(const char* what, int64_t expected, int64_t found) {
  if (expected == found) return;
  throw InputError(std::string("[live_item_index] ") + what + " " + std::to_string(expected) +
                   ", found " + std::to_string(found));
}

std::vector<float> normalise_all(Matrix<const float> vectors, int64_t dim) {
  expect("vectors: expected dim", dim, vectors.cols);
  std::vector<float> units(static_cast<size_t>(vectors.rows * dim));
  for (int64_t row = 0; row < vectors.rows; ++row) {
    if (!normalise(vectors.row(row), dim, units.data() + row * dim)) {
      throw InputError("[live_item_index] vectors: row " + std::to_string(row) +
                       ": expected finite values");
    }
  }
  return units;
}

}  // namespace

LiveItemIndex::LiveItemIndex(Matrix<const float> vectors, ThreadPool* pool)
    : snapshot_(std::make_shared<const ItemSnapshot>(ItemIndex::build(vectors, pool))) {}

LiveItemIndex::~LiveItemIndex() {
  {
    const std::lock_guard<std::mutex> lock(write_mutex_);
    stopping_ = true;
  }
  if (merger_.joinable()) merger_.join();
}

std::shared_ptr<const ItemSnapshot> LiveItemIndex::snapshot() const {
  const std::lock_guard<std::mutex> lock(snapshot_mutex_);
  return snapshot_;
}

void LiveItemIndex::publish(ItemSnapshot next) {
  auto shared = std::make_shared<const ItemSnapshot>(std::move(next));
  const std::lock_guard<std::mutex> lock(snapshot_mutex_);
  snapshot_.swap(shared);  // the one before goes after the lock, which searches wait for
}

int64_t LiveItemIndex::append(Matrix<const float> vectors) {
  const std::vector<float> units = normalise_all(vectors, dim());
  const std::lock_guard<std::mutex> lock(write_mutex_);
  const int64_t first = snapshot_->rows();
  const int64_t most = std::numeric_limits<int32_t>::max() - first;  // see ItemIndex
  if (vectors.rows > most) {
    throw InputError("[live_item_index] vectors: expected at most " + std::to_string(most) +
                     " more rows, found " + std::to_string(vectors.rows));
  }
  publish(snapshot_->with_appended(vectors.rows, units.data()));
  merge_if_large();
  return first;
}

void LiveItemIndex::replace(Span<const int64_t> rows, Matrix<const float> vectors) {
  expect("vectors: expected rows", rows.size, vectors.rows);
  const std::vector<float> units = normalise_all(vectors, dim());
  const std::lock_guard<std::mutex> lock(write_mutex_);
  publish(snapshot_->with_replaced(rows, units.data()));
  merge_if_large();
}

void LiveItemIndex::remove(Span<const int64_t> rows) {
  const std::lock_guard<std::mutex> lock(write_mutex_);
  publish(snapshot_->without(rows));
  merge_if_large();
}

void LiveItemIndex::merge() {
  const std::lock_guard<std::mutex> merging(merge_mutex_);
  std::exception_ptr failure;
  {
    const std::lock_guard<std::mutex> lock(write_mutex_);
    failure = std::exchange(failure_, nullptr);
  }
  if (failure) std::rethrow_exception(failure);
  merge_now();
}

void LiveItemIndex::merge_now() {
  std::shared_ptr<const ItemSnapshot> packed = snapshot();
  if (packed->pending() == 0 && packed->dead_in_base() == 0) return;
  std::shared_ptr<const ItemSnapshot::Base> base = packed->pack();
  const std::shared_ptr<const ItemSnapshot::Base> before = packed->base();
  {
    const std::lock_guard<std::mutex> lock(write_mutex_);
    publish(snapshot_->on(std::move(base), *packed));
    failure_ = nullptr;
    merge_above_ = 0;
  }
  // Searches may still read the base before. Waiting for them leaves its release, 20 ms for a
  // million items of 64 dimensions, to this thread and not to the last of them.
  packed.reset();
  while (before.use_count() > 1) std::this_thread::sleep_for(kPoll);
}

bool LiveItemIndex::is_large() const {
  const int64_t pending = snapshot_->pending();
  const int64_t dead = snapshot_->dead_in_base();
  const int64_t rows = snapshot_->base_rows();
  const bool large = pending > std::max(kLeastMerged, rows / kDeltaShare) ||
                     dead > std::max(kLeastMerged, rows / kDeadShare);
  return large && pending + dead > merge_above_;
}

void LiveItemIndex::keep_failure() {
  failure_ = std::current_exception();
  // Not again and again what may fail again.
  merge_above_ = 2 * (snapshot_->pending() + snapshot_->dead_in_base());
}

void LiveItemIndex::merge_if_large() {
  if (merging_ || !is_large()) return;
  if (merger_.joinable()) merger_.join();  // it is done
  try {
    merger_ = std::thread([this] { merge_while_large(); });
    merging_ = true;
  } catch (...) {
    keep_failure();
  }
}

void LiveItemIndex::merge_while_large() {
  for (;;) {
    const std::lock_guard<std::mutex> merging(merge_mutex_);
    {
      const std::lock_guard<std::mutex> lock(write_mutex_);
      merging_ = !stopping_ && is_large();
      if (!merging_) return;
    }
    try {
      merge_now();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(write_mutex_);
      keep_failure();
    }
  }
}

int64_t LiveItemIndex::rows() const { return snapshot()->rows(); }
int64_t LiveItemIndex::size() const { return snapshot()->size(); }
int64_t LiveItemIndex::dim() const { return snapshot()->dim(); }
int64_t LiveItemIndex::packed() const { return snapshot()->base_rows(); }
int64_t LiveItemIndex::pending() const { return snapshot()->pending(); }

void cosine_topk(const Context& context, const LiveItemIndex& index, const TopKQuery& query,
                 Matrix<int64_t> out_rows, Matrix<float> out_scores, TopKCertificate* certificates,
                 LiveItems* searched) {
  const std::shared_ptr<const ItemSnapshot> items = index.snapshot();
  items->search(context, query, out_rows, out_scores, certificates);
  if (searched != nullptr) *searched = items->copy_live();
}

}  // namespace recengine
