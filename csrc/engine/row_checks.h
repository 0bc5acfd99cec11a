#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "cpu/thread_pool.h"
#include "recengine/error.h"
#include "recengine/tensor.h"

namespace recengine {

// Calls body(begin, end) for blocks of rows, on the pool.
template <typename Body>
void for_each_block(ThreadPool& pool, int64_t rows, const Body& body) {
  constexpr int64_t kRowsPerTask = 4096;
  pool.parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t block) {
    const int64_t begin = block * kRowsPerTask;
    body(begin, std::min(begin + kRowsPerTask, rows));
  });
}

// Throws BundleError naming the first row of a block for which finite(row) is false.
template <typename Finite>
void require_finite_rows(ThreadPool& pool, const std::string& what, int64_t rows,
                         const Finite& finite) {
  for_each_block(pool, rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (!finite(row)) {
        throw BundleError(what + ": row " + std::to_string(row) +
                          ": expected finite values, found NaN or infinity");
      }
    }
  });
}

// The same for rows of floats.
void require_finite(ThreadPool& pool, const std::string& what, Matrix<const float> values);

}  // namespace recengine
