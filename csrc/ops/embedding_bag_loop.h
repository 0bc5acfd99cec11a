#pragma once

// The loops of embedding_bag over a SIMD type, included by each embedding_bag_<isa>.cc. All of it
// has internal linkage: the copies are compiled for different instruction sets.
//
// Lookups are bound by how many cache lines are on their way at once. So rows are taken in blocks
// of some hundred lines: first their addresses are computed and checked in a loop of few
// instructions, across bags and tables, then they are pooled. Bags are taken column by column over
// a group of users, so that a table's constants stay in registers.
//
// Prefetches come in bursts, a block before it is pooled (InBlocks), where a core takes them all.
// Others drop what they have no room for, or wait for room: there each row that is pooled
// prefetches the one that is as many rows ahead as the core may have on their way (RowByRow).
//
// Every element is added in row order with products rounded before the addition, so that all
// instruction sets give the same bits.

#include <cstdint>
#include <cstring>

#include "cpu/inline.h"
#include "ops/embedding_bag_kernel.h"

namespace recengine {
namespace {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kBlockLines = 384;  // half of a first-level cache
constexpr int64_t kMostAhead = 64;    // rows, where they are prefetched one by one
constexpr int64_t kLeastAhead = 2;
constexpr int64_t kGroupUsers = 256;
constexpr int kMostVectors = 8;  // of sums in a pass over columns

// How rows are prefetched: what a SIMD type derives from.
struct InBlocks {
  static constexpr bool kPaced = false;
};
template <int64_t kLines, int64_t kRows, int kLocality>
struct RowByRow {
  static constexpr bool kPaced = true;
  static constexpr int64_t kLinesAhead = kLines;
  static constexpr int64_t kRowsAhead = kRows;  // at most, whatever their lines
  static constexpr int kCache = kLocality;      // as __builtin_prefetch counts: 3 the first level
  static_assert(kRows <= kMostAhead);
};

// Stored values, told apart by type. An address within a row counts in values.
struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};
struct Nibbles {
  uint8_t pair;
};

template <typename T>
constexpr int64_t kValuesIn = 1;
template <>
constexpr int64_t kValuesIn<Nibbles> = 2;

template <typename T>
const T* value_at(const char* row, int64_t value) {
  return reinterpret_cast<const T*>(row) + value / kValuesIn<T>;
}

// Where a walk over the bags of a group is: column by column, each over all users.
struct Cursor {
  int64_t column = 0;
  int64_t user = 0;
  int64_t done = 0;  // rows of that bag taken already
};

// Up to kGroupUsers users of a chunk.
struct Group {
  const BagChunk* chunk;
  int64_t first_user;
  int64_t num_users;
  const int64_t* starts;  // positions of the users' first rows in the chunk

  int64_t length(int64_t column, int64_t user) const {
    return chunk->lengths[(first_user + user) * chunk->num_columns + column];
  }
};

// Where a column's bags begin in the chunk, kept up to date while a walk goes from column to
// column.
struct Positions {
  int64_t of_user[kGroupUsers];

  explicit Positions(const Group& group) {
    for (int64_t user = 0; user < group.num_users; ++user) of_user[user] = group.starts[user];
  }
};

// Rows that wait to be pooled.
struct Block {
  const char* rows[kBlockLines + kMostAhead];   // behind its own those of the next
  int64_t positions[kBlockLines + kMostAhead];  // in the chunk's rows
  int64_t size = 0;
  Cursor end;  // behind them
};

// Where a row is, or would be: the address of one outside the table is not used.
inline const char* row_at(const char* data, int64_t row, int64_t row_bytes) {
  const auto offset = static_cast<uint64_t>(row) * static_cast<uint64_t>(row_bytes);
  return reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(data) + offset);
}

constexpr int kAnyLines = 0;
constexpr int kNoLines = -1;

// Takes rows of the cursor's column until the block has `room` lines or the column ends,
// prefetching kLines lines of each. Returns the lines that fit still, -1 at a row outside its
// table.
template <int kLines>
int64_t fill_column(const Group& group, Cursor& cursor, Positions& positions, Block& block,
                    int64_t room, int64_t lines) {
  const BagChunk& chunk = *group.chunk;
  const EmbeddingTable& table = *chunk.columns[cursor.column].table;
  const char* const data = static_cast<const char*>(table.data);
  const auto num_rows = static_cast<uint64_t>(table.rows);
  const int64_t bytes = table.row_bytes;
  const int64_t last = bytes - 1;
  const float* const scales = table.scales;
  uint64_t outside = 0;  // its sign is set by such a row, or a negative one; looked at once a bag
  int64_t size = block.size;
  int64_t fit = size == 0 && room < lines ? 1 : room / lines;
  for (; cursor.user < group.num_users; ++cursor.user, cursor.done = 0) {
    const int64_t left = group.length(cursor.column, cursor.user) - cursor.done;
    const int64_t count = left < fit ? left : fit;
    const int64_t begin = positions.of_user[cursor.user] + cursor.done;
    for (int64_t position = begin; position < begin + count; ++position) {
      const int64_t id = chunk.rows[position];
      if constexpr (kLines == kNoLines) {
        outside |= (num_rows - 1 - static_cast<uint64_t>(id)) | static_cast<uint64_t>(id);
      } else {
        if (static_cast<uint64_t>(id) >= num_rows) return -1;
      }
      const char* const row = row_at(data, id, bytes);
      block.rows[size] = row;
      block.positions[size++] = position;
      if constexpr (kLines == kNoLines) continue;
      const int64_t full = kLines > 0 ? kLines - 1 : last / kLineBytes;
      for (int64_t line = 0; line < full; ++line) __builtin_prefetch(row + line * kLineBytes);
      __builtin_prefetch(row + last);
      if (kLines == kAnyLines) __builtin_prefetch(row + full * kLineBytes);
      if (scales != nullptr) __builtin_prefetch(scales + id);
    }
    if (outside >> 63 != 0) return -1;
    fit -= count;
    room -= count * lines;
    cursor.done += count;
    if (count < left) break;
    positions.of_user[cursor.user] += cursor.done;
  }
  block.size = size;
  return room > 0 ? room : 0;
}

using FillColumn = int64_t (*)(const Group&, Cursor&, Positions&, Block&, int64_t, int64_t);

FillColumn fill_column_for(int64_t lines) {
  constexpr FillColumn kFill[] = {
      fill_column<kAnyLines>, fill_column<1>, fill_column<2>, fill_column<3>, fill_column<4>,
      fill_column<5>,         fill_column<6>, fill_column<7>, fill_column<8>, fill_column<9>};
  return kFill[lines < 10 ? lines : 0];
}

// Lines that a row of the table may touch.
int64_t lines_of(const EmbeddingTable& table) {
  const uint64_t edges =
      reinterpret_cast<uintptr_t>(table.data) | static_cast<uint64_t>(table.row_bytes) | kLineBytes;
  const auto aligned = static_cast<int64_t>(edges & (~edges + 1));  // all rows, to so many bytes
  return (table.row_bytes - aligned + 2 * kLineBytes - 1) / kLineBytes;
}

// Takes rows into the block until it is full or the group ends, and prefetches them if these are
// not paced. Returns false at a row outside its table.
template <bool kPaced>
bool fill(const Group& group, Cursor& cursor, Positions& positions, Block& block) {
  int64_t room = kBlockLines;  // in lines
  block.size = 0;
  while (cursor.column < group.chunk->num_columns) {
    if constexpr (kPaced) {
      room = fill_column<kNoLines>(group, cursor, positions, block, room, /*lines=*/1);
    } else {
      const int64_t lines = lines_of(*group.chunk->columns[cursor.column].table);
      room = fill_column_for(lines)(group, cursor, positions, block, room, lines);
    }
    if (room < 0) return false;
    if (cursor.user < group.num_users) break;
    ++cursor.column;
    cursor.user = 0;
  }
  block.end = cursor;
  return true;
}

// What a pass over some columns of a table prefetches, row by row.
struct Pace {
  int64_t first;  // bytes of a row: from here on one of each line, up to
  int64_t end;    // this one
  int64_t last;   // and the last
  int64_t apart;  // one that the first pass reads besides, or -1
  int64_t ahead;  // how many rows; 0 for a pass whose bytes are there already
};

// So many that they have kLinesAhead lines, within kLeastAhead and kRowsAhead.
template <typename Simd>
int64_t rows_ahead(int64_t lines) {
  if (lines * Simd::kRowsAhead <= Simd::kLinesAhead) return Simd::kRowsAhead;
  const int64_t rows = Simd::kLinesAhead / lines;
  return rows < kLeastAhead ? kLeastAhead : rows;
}

// Of columns [begin, end). Each pass over many columns prefetches its own bytes, so that lines are
// on their way in all of them; the last of these those of the short passes behind it, too.
template <typename Simd, typename T>
Pace pace_of(const EmbeddingTable& table, int64_t begin, int64_t end) {
  constexpr int64_t kMany = kMostVectors * Simd::kWidth;
  if (begin > 0 && end - begin < kMany) return {0, 0, 0, -1, 0};
  const auto byte_of = [&](int64_t column) {
    return table.codes_at + column * static_cast<int64_t>(sizeof(T)) / kValuesIn<T>;
  };
  const bool is_last = table.dim - end < kMany;
  Pace pace{begin == 0 ? 0 : byte_of(begin), 0, is_last ? table.row_bytes - 1 : byte_of(end) - 1,
            -1, 0};
  if (begin == 0 && table.scale_at > pace.last) pace.apart = table.scale_at;
  const int64_t lines =
      begin == 0 && is_last ? lines_of(table) : (pace.last - pace.first) / kLineBytes + 2;
  pace.end = pace.first + (lines - 1) * kLineBytes;
  if constexpr (Simd::kPaced) pace.ahead = rows_ahead<Simd>(lines);
  return pace;
}

// Every line of a row's bytes `first` to `last`: as many instructions for each row of a table, for
// where its lines begin cannot be predicted.
template <typename Simd>
RECENGINE_INLINE void prefetch_lines(const char* row, int64_t first, int64_t end, int64_t last) {
  for (int64_t byte = first; byte < end; byte += kLineBytes) {
    __builtin_prefetch(row + byte, 0, Simd::kCache);
  }
  __builtin_prefetch(row + last, 0, Simd::kCache);
}

// Behind the rows of a block come the first of the next, or its own last one again.
template <typename Simd>
void append_next(Block& block, const Block& next) {
  for (int64_t i = 0; i < Simd::kRowsAhead; ++i) {
    const bool has = i < next.size;
    if (!has && block.size == 0) return;
    block.rows[block.size + i] = has ? next.rows[i] : block.rows[block.size - 1];
    block.positions[block.size + i] = has ? next.positions[i] : block.positions[block.size - 1];
  }
}

// Bags of one column whose rows are in the block. The first one may have begun in the block before
// and the last one may end in the next.
struct Run {
  const BagChunk* chunk;
  const EmbeddingTable* table;
  const char* const* rows;   // of all bags, concatenated
  const int64_t* positions;  // beside rows
  const int32_t* counts;     // rows of each bag here, [size]
  int64_t size;
  int64_t done;         // rows of the first bag in blocks before, their sum in `out`
  float biases_before;  // their biases
  bool cut;             // the last bag goes on
  bool mean;
  float* out;      // of the first bag
  int64_t stride;  // from one bag's `out` to the next
};

// What a row's codes are multiplied by, and what is added to each value.
struct ScaleAndBias {
  float scale;
  float bias;
};

template <typename T>
constexpr bool kFused = false;
template <>
constexpr bool kFused<uint8_t> = true;
template <>
constexpr bool kFused<Nibbles> = true;

template <typename Simd, typename T>
RECENGINE_INLINE ScaleAndBias scale_and_bias(const Run& run, int64_t i) {
  const EmbeddingTable& table = *run.table;
  ScaleAndBias found{1.0f, 0.0f};
  if constexpr (kFused<T>) {
    const char* const at = run.rows[i] + table.scale_at;
    if (table.half_scale) {
      found = Simd::load_halves(at);
    } else {
      std::memcpy(&found, at, sizeof found);
    }
  } else if (table.scales != nullptr) {
    found.scale = table.scales[run.chunk->rows[run.positions[i]]];
  }
  if (run.chunk->weights != nullptr) {
    const float weight = run.chunk->weights[run.positions[i]];
    found.scale *= weight;
    found.bias *= weight;
  }
  return found;
}

// Prefetches what comes after row i of a run.
template <typename Simd, typename T>
RECENGINE_INLINE void prefetch_ahead(const Run& run, int64_t i, const Pace& pace) {
  if constexpr (Simd::kPaced) {
    if (pace.ahead == 0) return;
    const char* const row = run.rows[i + pace.ahead];
    prefetch_lines<Simd>(row, pace.first, pace.end, pace.last);
    if (pace.apart >= 0) __builtin_prefetch(row + pace.apart, 0, Simd::kCache);
    if (kFused<T> || run.table->scales == nullptr || pace.first > 0) return;
    const auto* const scales = reinterpret_cast<const char*>(run.table->scales);
    const int64_t id = run.chunk->rows[run.positions[i + pace.ahead]];  // or of the next column
    __builtin_prefetch(row_at(scales, id, sizeof(float)), 0, Simd::kCache);
  }
}

// Where a bag is in its run.
struct BagState {
  bool continues;
  bool complete;
  int64_t length;  // rows up to here
};

BagState state_of(const Run& run, int64_t bag) {
  const bool first = bag == 0;
  return {first && run.done > 0, bag + 1 < run.size || !run.cut,
          run.counts[bag] + (first ? run.done : 0)};
}

// The sum over bias and count of a bag that is complete; nothing changes without either.
template <typename Simd, typename T>
typename Simd::Reg finish(const Run& run, const BagState& state, float bias,
                          typename Simd::Reg sum) {
  if (!state.complete) return sum;
  if constexpr (kFused<T>) sum = Simd::add(sum, Simd::broadcast(bias));
  if (!run.mean || state.length <= 1) return sum;
  return Simd::div(sum, Simd::broadcast(static_cast<float>(state.length)));
}

// Columns [begin, begin + kVectors * width) of every bag, pooled in registers. Returns the biases
// of the last bag.
template <typename Simd, typename T, bool kScaled, int kVectors>
float pool_vectors(const Run& run, int64_t begin) {
  using Reg = typename Simd::Reg;
  const int64_t codes_at = run.table->codes_at;
  const Pace pace = pace_of<Simd, T>(*run.table, begin, begin + kVectors * Simd::kWidth);
  const char* const* const rows = run.rows;
  float* out = run.out + begin;
  float bias = run.biases_before;
  int64_t i = 0;
  for (int64_t bag = 0; bag < run.size; ++bag, out += run.stride) {
    const BagState state = state_of(run, bag);
    Reg sums[kVectors];
    for (int v = 0; v < kVectors; ++v) sums[v] = Simd::zero();
    if (state.continues) {
      for (int v = 0; v < kVectors; ++v) sums[v] = Simd::load(out + v * Simd::kWidth);
    } else {
      bias = 0;
    }
    for (const int64_t end = i + run.counts[bag]; i < end; ++i) {
      prefetch_ahead<Simd, T>(run, i, pace);
      const char* const row = rows[i] + codes_at;
      if constexpr (kScaled) {
        const ScaleAndBias found = scale_and_bias<Simd, T>(run, i);
        const Reg factor = Simd::template spread<T>(found.scale);
        bias += found.bias;
        for (int v = 0; v < kVectors; ++v) {
          const T* const values = value_at<T>(row, begin + v * Simd::kWidth);
          sums[v] = Simd::add(sums[v], Simd::scaled(values, factor));
        }
      } else {
        for (int v = 0; v < kVectors; ++v) {
          sums[v] = Simd::add(sums[v], Simd::load(value_at<T>(row, begin + v * Simd::kWidth)));
        }
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      Simd::store(out + v * Simd::kWidth, finish<Simd, T>(run, state, bias, sums[v]));
    }
  }
  return bias;
}

// The same for the last columns, fewer than a vector holds.
template <typename Simd, typename T>
float pool_tail(const Run& run, int64_t begin, bool scaled) {
  using Reg = typename Simd::Reg;
  const int width = static_cast<int>(run.table->dim - begin);
  const Pace pace = pace_of<Simd, T>(*run.table, begin, run.table->dim);
  float* out = run.out + begin;
  float bias = run.biases_before;
  int64_t i = 0;
  for (int64_t bag = 0; bag < run.size; ++bag, out += run.stride) {
    const BagState state = state_of(run, bag);
    Reg sum = state.continues ? Simd::load_part(out, width) : Simd::zero();
    if (!state.continues) bias = 0;
    for (const int64_t end = i + run.counts[bag]; i < end; ++i) {
      prefetch_ahead<Simd, T>(run, i, pace);
      const T* const values = value_at<T>(run.rows[i] + run.table->codes_at, begin);
      const ScaleAndBias found =
          scaled ? scale_and_bias<Simd, T>(run, i) : ScaleAndBias{1.0f, 0.0f};
      bias += found.bias;
      const Reg factor = Simd::broadcast(found.scale);
      sum = Simd::add(sum, Simd::mul(Simd::load_part(values, width), factor));
    }
    Simd::store_part(out, finish<Simd, T>(run, state, bias, sum), width);
  }
  return bias;
}

template <typename Simd, typename T, bool kScaled>
float pool_typed(const Run& run) {
  constexpr int64_t kWidth = Simd::kWidth;
  const int64_t dim = run.table->dim;
  int64_t begin = 0;
  float bias = 0;
  for (; begin + kMostVectors * kWidth <= dim; begin += kMostVectors * kWidth) {
    bias = pool_vectors<Simd, T, kScaled, kMostVectors>(run, begin);
  }
  if (begin + 4 * kWidth <= dim) {
    bias = pool_vectors<Simd, T, kScaled, 4>(run, begin);
    begin += 4 * kWidth;
  }
  for (; begin + kWidth <= dim; begin += kWidth) {
    bias = pool_vectors<Simd, T, kScaled, 1>(run, begin);
  }
  if (begin < dim) bias = pool_tail<Simd, T>(run, begin, kScaled);
  return bias;
}

// Returns the biases of the last bag.
template <typename Simd>
float pool_bags(const Run& run) {
  const bool weighted = run.chunk->weights != nullptr;
  switch (run.table->row_type) {
    case RowType::kFloat32:
      return weighted ? pool_typed<Simd, float, true>(run) : pool_typed<Simd, float, false>(run);
    case RowType::kFloat16:
      return weighted ? pool_typed<Simd, Half, true>(run) : pool_typed<Simd, Half, false>(run);
    case RowType::kBfloat16:
      return weighted ? pool_typed<Simd, Bfloat, true>(run) : pool_typed<Simd, Bfloat, false>(run);
    case RowType::kInt8:
      return pool_typed<Simd, int8_t, true>(run);
    case RowType::kFusedInt8:
      return pool_typed<Simd, uint8_t, true>(run);
    case RowType::kFusedInt4:
      return pool_typed<Simd, Nibbles, true>(run);
  }
  return 0;
}

constexpr int32_t kOnes[1] = {1};

// Pools the rows that fill() took, empty bags included.
template <typename Simd>
class Pooler {
 public:
  explicit Pooler(const Group& group) : group_(group) {}

  void run(const Block& block) {
    const Cursor& end = block.end;
    int64_t taken = 0;
    while (cursor_.column < end.column) {
      taken += run_column(block, taken, {cursor_.column, group_.num_users, 0});
      cursor_ = {cursor_.column + 1, 0, 0};
    }
    if (cursor_.column < group_.chunk->num_columns) run_column(block, taken, end);
    cursor_ = end;
  }

 private:
  // From cursor_ on within its column; returns how many rows of the block were pooled.
  int64_t run_column(const Block& block, int64_t taken, const Cursor& end) {
    const BagChunk& chunk = *group_.chunk;
    const BagColumn& column = chunk.columns[cursor_.column];
    int32_t counts[kGroupUsers];
    int64_t size = 0;
    int64_t total = 0;
    for (int64_t user = cursor_.user; user < end.user; ++user) {
      counts[size] = static_cast<int32_t>(group_.length(cursor_.column, user));
      total += counts[size++];
    }
    if (end.done > 0) {
      counts[size++] = static_cast<int32_t>(end.done);
      total += end.done;
    }
    if (size == 0) return 0;
    counts[0] -= static_cast<int32_t>(cursor_.done);
    total -= cursor_.done;
    Run run;
    run.chunk = &chunk;
    run.table = column.table;
    run.rows = block.rows + taken;
    run.positions = block.positions + taken;
    run.counts = counts;
    run.size = size;
    run.done = cursor_.done;
    run.biases_before = biases_;
    run.cut = end.done > 0;
    run.mean = column.pooling == Pooling::kMean;
    run.out = chunk.out + (group_.first_user + cursor_.user) * chunk.out_cols + column.offset;
    run.stride = chunk.out_cols;
    if (column.pooling == Pooling::kNone) {
      copy_rows(run, column);
    } else {
      biases_ = pool_bags<Simd>(run);
    }
    return total;
  }

  // Rows as they are, one after the other, and zeros behind them: each row is a bag of its own.
  void copy_rows(const Run& bags, const BagColumn& column) {
    const int64_t dim = bags.table->dim;
    Run row = bags;
    row.counts = kOnes;
    row.size = 1;
    row.done = 0;
    row.cut = false;
    for (int64_t bag = 0; bag < bags.size; ++bag) {
      float* const out = bags.out + bag * bags.stride;
      const int64_t done = bag == 0 ? bags.done : 0;
      for (int64_t i = done; i < done + bags.counts[bag]; ++i, ++row.rows, ++row.positions) {
        row.out = out + i * dim;
        pool_bags<Simd>(row);
      }
      // A bag that was cut is filled up further when its rest comes.
      const int64_t end = (done + bags.counts[bag]) * dim;
      for (int64_t i = end; i < column.max_length * dim; ++i) out[i] = 0;
    }
  }

  const Group& group_;
  Cursor cursor_;
  float biases_ = 0;  // of the bag that the cursor is in, summed
};

template <typename Simd>
bool pool_group(const Group& group) {
  Cursor cursor;
  Positions positions(group);
  Pooler<Simd> pooler(group);
  Block block;
  while (cursor.column < group.chunk->num_columns) {
    if (!fill<false>(group, cursor, positions, block)) return false;
    pooler.run(block);
  }
  return true;
}

// The same where prefetches are paced: the addresses of a block are there before it is reached.
template <typename Simd>
bool pool_group_paced(const Group& group) {
  if (group.chunk->num_columns == 0) return true;
  Cursor cursor;
  Positions positions(group);
  Pooler<Simd> pooler(group);
  Block blocks[2];
  if (!fill<true>(group, cursor, positions, blocks[0])) return false;
  const EmbeddingTable& first = *group.chunk->columns[0].table;
  const int64_t passes = first.dim / (kMostVectors * Simd::kWidth);
  const int64_t lines = passes > 1 ? (lines_of(first) + passes - 1) / passes : lines_of(first);
  const int64_t ahead = rows_ahead<Simd>(lines);  // of a pass
  const int64_t end = (lines_of(first) - 1) * kLineBytes;
  for (int64_t i = 0; i < blocks[0].size && i < ahead; ++i) {
    prefetch_lines<Simd>(blocks[0].rows[i], 0, end, first.row_bytes - 1);
  }
  for (int now = 0;; now = 1 - now) {
    Block& next = blocks[1 - now];
    next.size = 0;
    const bool last = cursor.column == group.chunk->num_columns;
    if (!last && !fill<true>(group, cursor, positions, next)) return false;
    append_next<Simd>(blocks[now], next);
    pooler.run(blocks[now]);
    if (last) return true;
  }
}

template <typename Simd>
bool embedding_bag_loop(const BagChunk& chunk) {
  int64_t starts[kGroupUsers];
  int64_t position = 0;
  const int32_t* lengths = chunk.lengths;
  for (int64_t user = 0; user < chunk.batch; user += kGroupUsers) {
    const int64_t left = chunk.batch - user;
    const Group group{&chunk, user, left < kGroupUsers ? left : kGroupUsers, starts};
    for (int64_t i = 0; i < group.num_users; ++i) {
      starts[i] = position;
      for (int64_t c = 0; c < chunk.num_columns; ++c) position += *lengths++;
    }
    if constexpr (Simd::kPaced) {
      if (!pool_group_paced<Simd>(group)) return false;
    } else if (!pool_group<Simd>(group)) {
      return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace recengine
