#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace recengine::triton {

// What recent batches of a model took, by their size: a search reads the catalog once, whatever the
// batch, so that a row of a large one may take a twentieth of a lone one. What large batches took
// is known while requests come one by one, and a crowd is not refused for what each of it would
// take alone.
class RowCost {
 public:
  // One thread's work on each row of a batch of so many, in ns; 0: nothing is known.
  double row_ns(int64_t rows) const;

  // A batch took so much of one thread. That of a warm-up counts until its size was measured:
  // memory may have been read for the first time.
  void learn(int64_t rows, double work_ns, bool is_warmup);

 private:
  // Of batches of more than 2^(i-1) and up to 2^i rows, the last of any more.
  struct Size {
    double row_ns = 0;  // smoothed; 0: not known
    bool measured = false;
  };
  static constexpr size_t kSizes = 16;

  struct Guess {
    double row_ns;
    double most_ns;
  };

  static size_t size_of(int64_t rows);
  Guess guess(int64_t rows) const;

  std::array<Size, kSizes> sizes_;
};

}  // namespace recengine::triton
