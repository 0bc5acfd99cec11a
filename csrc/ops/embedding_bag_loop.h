#pragma once

// The loops of embedding_bag over a SIMD type, included by each embedding_bag_<isa>.cc. All of it
// has internal linkage: the copies are compiled for different instruction sets.
//
// Every element is added in row order with products rounded before the addition, so that all
// instruction sets give the same bits.

#include <cstdint>

#include "ops/embedding_bag_kernel.h"

namespace recengine {
namespace {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kRowsAhead = 16;  // 64 cache lines in flight at 256-byte rows
constexpr int64_t kRowsPerStep = 8;

template <typename T>
constexpr RowType kRowTypeOf = RowType::kFloat32;
template <>
constexpr RowType kRowTypeOf<uint16_t> = RowType::kFloat16;
template <>
constexpr RowType kRowTypeOf<int8_t> = RowType::kInt8;

int64_t value_bytes(RowType type) {
  return type == RowType::kFloat32 ? 4 : type == RowType::kFloat16 ? 2 : 1;
}

// Walks the rows of a chunk ahead of the pooling, across bags and tables.
class Prefetcher {
 public:
  explicit Prefetcher(const BagChunk& chunk)
      : chunk_(chunk), num_bags_(chunk.batch * chunk.num_columns) {}

  // Makes sure that rows [0, target) of the chunk are on their way to the cache.
  void advance(int64_t target) {
    while (position_ < target) {
      if (position_ == bag_end_) {
        if (bag_ == num_bags_) return;
        column_ = column_ + 1 == chunk_.num_columns ? 0 : column_ + 1;
        bag_end_ += chunk_.lengths[bag_++];
        continue;
      }
      fetch_rows(*chunk_.columns[column_].table, target < bag_end_ ? target : bag_end_);
    }
  }

 private:
  void fetch_rows(const EmbeddingTable& table, int64_t end) {
    const int64_t bytes = table.dim * value_bytes(table.row_type);
    for (; position_ < end; ++position_) {
      const int64_t row = chunk_.rows[position_];
      const char* data = static_cast<const char*>(table.data) + row * bytes;
      for (int64_t offset = 0; offset < bytes; offset += kLineBytes) {
        __builtin_prefetch(data + offset);
      }
      __builtin_prefetch(data + bytes - 1);
      if (table.scales != nullptr) __builtin_prefetch(table.scales + row);
    }
  }

  const BagChunk& chunk_;
  int64_t num_bags_;
  int64_t bag_ = 0;      // bags begun
  int64_t column_ = -1;  // of the bag begun last
  int64_t bag_end_ = 0;
  int64_t position_ = 0;
};

// One bag: `count` rows of a table, from `position` of the chunk's rows on.
struct Bag {
  const EmbeddingTable* table;
  const int64_t* rows;
  const float* weights;
  int64_t position;
  int64_t count;
  float divisor;
};

float factor_of(const Bag& bag, int64_t i) {
  const float scale = bag.table->scales != nullptr ? bag.table->scales[bag.rows[i]] : 1.0f;
  return bag.weights != nullptr ? scale * bag.weights[i] : scale;
}

// Columns [begin, begin + kVectors * width) of one bag, in registers.
template <typename Simd, typename T, bool kScaled, int kVectors>
void pool_vectors(const Bag& bag, int64_t begin, Prefetcher& prefetcher, float* out) {
  using Reg = typename Simd::Reg;
  const T* data = static_cast<const T*>(bag.table->data) + begin;
  const int64_t dim = bag.table->dim;
  Reg sums[kVectors];
  for (int v = 0; v < kVectors; ++v) sums[v] = Simd::zero();
  for (int64_t step = 0; step < bag.count; step += kRowsPerStep) {
    const int64_t end = bag.count < step + kRowsPerStep ? bag.count : step + kRowsPerStep;
    prefetcher.advance(bag.position + end + kRowsAhead);
    for (int64_t i = step; i < end; ++i) {
      const T* row = data + bag.rows[i] * dim;
      const Reg factor = kScaled ? Simd::broadcast(factor_of(bag, i)) : Simd::zero();
      for (int v = 0; v < kVectors; ++v) {
        const Reg values = Simd::load(row + v * Simd::kWidth);
        sums[v] = Simd::add(sums[v], kScaled ? Simd::mul(values, factor) : values);
      }
    }
  }
  const Reg divisor = Simd::broadcast(bag.divisor);
  for (int v = 0; v < kVectors; ++v) {
    Simd::store(out + begin + v * Simd::kWidth, Simd::div(sums[v], divisor));
  }
}

// The last columns of one bag, fewer than a vector holds.
template <typename Simd, typename T>
void pool_tail(const Bag& bag, int64_t begin, bool scaled, float* out) {
  using Reg = typename Simd::Reg;
  const int64_t dim = bag.table->dim;
  const int width = static_cast<int>(dim - begin);
  Reg sum = Simd::zero();
  for (int64_t i = 0; i < bag.count; ++i) {
    const T* row = static_cast<const T*>(bag.table->data) + bag.rows[i] * dim;
    const Reg values = Simd::load_part(row + begin, width);
    const Reg factor = Simd::broadcast(scaled ? factor_of(bag, i) : 1.0f);
    sum = Simd::add(sum, Simd::mul(values, factor));
  }
  Simd::store_part(out + begin, Simd::div(sum, Simd::broadcast(bag.divisor)), width);
}

template <typename Simd, typename T, bool kScaled>
void pool_typed(const Bag& bag, Prefetcher& prefetcher, float* out) {
  constexpr int64_t kWidth = Simd::kWidth;
  const int64_t dim = bag.table->dim;
  int64_t begin = 0;
  for (; begin + 8 * kWidth <= dim; begin += 8 * kWidth) {
    pool_vectors<Simd, T, kScaled, 8>(bag, begin, prefetcher, out);
  }
  if (begin + 4 * kWidth <= dim) {
    pool_vectors<Simd, T, kScaled, 4>(bag, begin, prefetcher, out);
    begin += 4 * kWidth;
  }
  for (; begin + kWidth <= dim; begin += kWidth) {
    pool_vectors<Simd, T, kScaled, 1>(bag, begin, prefetcher, out);
  }
  if (begin < dim) pool_tail<Simd, T>(bag, begin, kScaled, out);
}

template <typename Simd>
void pool(const Bag& bag, Prefetcher& prefetcher, float* out) {
  const bool weighted = bag.weights != nullptr;
  switch (bag.table->row_type) {
    case RowType::kFloat32:
      return weighted ? pool_typed<Simd, float, true>(bag, prefetcher, out)
                      : pool_typed<Simd, float, false>(bag, prefetcher, out);
    case RowType::kFloat16:
      return weighted ? pool_typed<Simd, uint16_t, true>(bag, prefetcher, out)
                      : pool_typed<Simd, uint16_t, false>(bag, prefetcher, out);
    case RowType::kInt8:
      return pool_typed<Simd, int8_t, true>(bag, prefetcher, out);
  }
}

// Rows as they are, one after the other, and zeros behind them: a row is a bag of one.
template <typename Simd>
void copy_sequence(Bag bag, int64_t max_length, Prefetcher& prefetcher, float* out) {
  const int64_t dim = bag.table->dim;
  const int64_t count = bag.count;
  bag.count = 1;
  for (int64_t i = 0; i < count; ++i) {
    pool<Simd>(bag, prefetcher, out + i * dim);
    ++bag.rows;
    ++bag.position;
    if (bag.weights != nullptr) ++bag.weights;
  }
  for (int64_t i = count * dim; i < max_length * dim; ++i) out[i] = 0;
}

template <typename Simd>
void embedding_bag_loop(const BagChunk& chunk) {
  Prefetcher prefetcher(chunk);
  const int32_t* lengths = chunk.lengths;
  int64_t position = 0;
  for (int64_t user = 0; user < chunk.batch; ++user) {
    for (int64_t c = 0; c < chunk.num_columns; ++c) {
      const BagColumn& column = chunk.columns[c];
      const int64_t count = *lengths++;
      const bool mean = column.pooling == Pooling::kMean && count > 0;
      const Bag bag{column.table,
                    chunk.rows + position,
                    chunk.weights == nullptr ? nullptr : chunk.weights + position,
                    position,
                    count,
                    mean ? static_cast<float>(count) : 1.0f};
      float* out = chunk.out + user * chunk.out_cols + column.offset;
      if (column.pooling == Pooling::kNone) {
        copy_sequence<Simd>(bag, column.max_length, prefetcher, out);
      } else {
        pool<Simd>(bag, prefetcher, out);
      }
      position += count;
    }
  }
}

}  // namespace
}  // namespace recengine
