#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace recengine::triton {

// What recent batches of a model took, by their size: a search reads the catalog once, whatever the
// batch, so that a row of a large one may take a twentieth of a lone one. What large batches took
// is known while requests come one by one, and a crowd is not refused for what each of it would
// take alone. A machine that gets slower or faster does so for all sizes: half of what a batch
// takes more or less than expected is taken for that, so that sizes which do not run now follow.
class BatchCost {
 public:
  // One thread's work on a batch of so many rows, in ns, between what the nearest sizes took; 0:
  // nothing is known.
  double work_ns(int64_t rows) const;

  // A batch took so much of one thread. Of warm-ups the largest counts, until its size was
  // measured: those before it may have read memory for the first time.
  void learn(int64_t rows, double work_ns, bool is_warmup);

 private:
  // Of batches of more than 2^(i-1) and up to 2^i rows, the last of any more; smoothed.
  struct Size {
    double rows = 0;
    double work_ns = 0;  // at slowness 1; 0: not known
    bool measured = false;
  };
  static constexpr size_t kSizes = 16;

  static size_t size_of(int64_t rows);
  std::array<double, kSizes> consistent() const;

  std::array<Size, kSizes> sizes_;
  size_t latest_ = 0;  // that ran last; the first: none has, or it is as small as any
  double slowness_ = 1;
};

}  // namespace recengine::triton
