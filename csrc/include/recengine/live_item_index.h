#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "recengine/context.h"
#include "recengine/item_index.h"
#include "recengine/ops/cosine_topk.h"
#include "recengine/tensor.h"

namespace recengine {

class ItemSnapshot;  // ops/item_snapshot.h

// A copy of the items of one moment.
struct LiveItems {
  std::vector<int64_t> rows;              // ascending
  std::unique_ptr<float[]> unit_vectors;  // [rows, dim]
};

// An item index that changes while it is searched. A row keeps its number for ever; what a call
// changes is seen by every search that begins after it has returned. All may be called from many
// threads at once: a search reads the state that it found and waits for no writer.
//
// New vectors stand in a delta that every search reads whole, and dead rows in a bitmap, until a
// merge packs a new base from all that is live. One begins by itself, on a thread of its own, when
// the delta has more than max(4096, packed / 64) vectors or more than max(4096, packed / 8) rows of
// the base are dead; it needs memory for a second base. After it a removed row takes 1.5 bits.
class LiveItemIndex {
 public:
  // Begins with `vectors` [rows, dim] as rows 0, 1, ..., normalised and refused as
  // ItemIndex::build() does.
  explicit LiveItemIndex(Matrix<const float> vectors, ThreadPool* pool = nullptr);

  // Waits for a merge that is under way.
  ~LiveItemIndex();

  LiveItemIndex(const LiveItemIndex&) = delete;
  LiveItemIndex& operator=(const LiveItemIndex&) = delete;

  // The calls below throw InputError, which names position and value, and change nothing when a
  // vector is not finite, shapes disagree, or a row is outside, was removed or is given twice.

  // Adds items and returns the row of the first; the others follow it.
  int64_t append(Matrix<const float> vectors);

  // Gives live rows new vectors.
  void replace(Span<const int64_t> rows, Matrix<const float> vectors);

  // Takes live rows out of all answers.
  void remove(Span<const int64_t> rows);

  // Packs what was written before the call into the base, and returns when that is done. Throws
  // what made a merge in the background fail since the last one that did not.
  void merge();

  int64_t rows() const;  // given so far, removed ones included
  int64_t size() const;  // live rows
  int64_t dim() const;
  int64_t packed() const;   // rows of the base, dead ones included
  int64_t pending() const;  // vectors in the delta, dead ones included

 private:
  friend void cosine_topk(const Context& context, const LiveItemIndex& index,
                          const TopKQuery& query, Matrix<int64_t> out_rows,
                          Matrix<float> out_scores, TopKCertificate* certificates,
                          LiveItems* searched);

  std::shared_ptr<const ItemSnapshot> snapshot() const;
  void merge_now();  // needs merge_mutex_
  void merge_while_large();

  // These need write_mutex_.
  void publish(ItemSnapshot next);
  bool is_large() const;
  void merge_if_large();
  void keep_failure();  // the exception that is being handled

  std::mutex merge_mutex_;             // held while a merge runs; locked before write_mutex_
  std::mutex write_mutex_;             // held by one writer at a time
  mutable std::mutex snapshot_mutex_;  // held for the copy of a pointer

  // Written under write_mutex_ and snapshot_mutex_; either is enough to read it.
  std::shared_ptr<const ItemSnapshot> snapshot_;

  // Guarded by write_mutex_.
  std::thread merger_;
  bool merging_ = false;  // in the background
  bool stopping_ = false;
  std::exception_ptr failure_;  // of a merge in the background, when none succeeded since
  int64_t merge_above_ = 0;     // vectors in the delta and dead rows; after a failure
};

// cosine_topk() on the items of one moment. The bitmap and the excluded rows refer to that moment's
// rows(). `searched`, when not null, gets these items, for a check of the answer.
void cosine_topk(const Context& context, const LiveItemIndex& index, const TopKQuery& query,
                 Matrix<int64_t> out_rows, Matrix<float> out_scores,
                 TopKCertificate* certificates = nullptr, LiveItems* searched = nullptr);

}  // namespace recengine
