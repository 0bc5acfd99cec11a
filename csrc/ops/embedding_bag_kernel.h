#pragma once

#include <cstdint>

#include "recengine/ops/embedding_bag.h"

namespace recengine {

// Consecutive users of one call; lengths are checked. Plain pointers: an inline function of a
// shared header must not be compiled for one instruction set and run on another.
struct BagChunk {
  const BagColumn* columns;
  int64_t num_columns;
  const int64_t* rows;     // of the first user's first bag on
  const int32_t* lengths;  // [batch, columns]
  const float* weights;    // beside rows, or null
  int64_t batch;
  float* out;  // [batch, out_cols]
  int64_t out_cols;
};

// Returns whether every row is inside its table. When one is not, it is not read, and what was not
// written yet is left as it is.
using EmbeddingBagKernel = bool (*)(const BagChunk& chunk);

bool embedding_bag_portable(const BagChunk& chunk);
bool embedding_bag_avx2(const BagChunk& chunk);
bool embedding_bag_avx512(const BagChunk& chunk);
// The same for cores that have more lines on their way to the second level of their caches.
bool embedding_bag_avx512_paced(const BagChunk& chunk);

}  // namespace recengine
