#pragma once

#include <cstdint>

namespace recengine::triton {

// How fast rows come to a model, whether or not they are taken in: counted over the last 50 to
// 100 ms, so that what came before a pause or a burst is soon forgotten.
class Arrivals {
 public:
  void add(uint64_t now_ns, int64_t rows) {
    roll(now_ns);
    rows_ += rows;
  }

  // How many rows to expect within so many ns of now.
  double expected_rows(uint64_t now_ns, double within_ns) const {
    Arrivals seen = *this;
    seen.roll(now_ns);
    const double elapsed_ns = double(kWindowNs + (now_ns - seen.begin_ns_));
    return double(seen.rows_before_ + seen.rows_) * within_ns / elapsed_ns;
  }

 private:
  static constexpr uint64_t kWindowNs = 50'000'000;

  void roll(uint64_t now_ns) {
    if (now_ns < begin_ns_ + kWindowNs) return;
    const bool is_next = now_ns < begin_ns_ + 2 * kWindowNs;
    rows_before_ = is_next ? rows_ : 0;
    rows_ = 0;
    begin_ns_ = is_next ? begin_ns_ + kWindowNs : now_ns;
  }

  uint64_t begin_ns_ = 0;
  int64_t rows_before_ = 0;  // in the window before
  int64_t rows_ = 0;         // in the one that began then
};

}  // namespace recengine::triton
