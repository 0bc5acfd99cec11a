#include "recengine/ops/embedding_bag.h"

#include <algorithm>
#include <string>

#include "cpu/isa.h"
#include "cpu/thread_pool.h"
#include "ops/embedding_bag_check.h"
#include "ops/embedding_bag_kernel.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr int64_t kMaxChunks = 64;
constexpr int64_t kRowsPerChunk = 4096;  // below, waking a thread costs more than it saves

EmbeddingBagKernel kernel_for(Isa isa) {
  return pick_kernel(isa, embedding_bag_portable, embedding_bag_avx2, embedding_bag_avx512,
                     embedding_bag_avx512, embedding_bag_avx512_paced);
}

[[noreturn]] void fail(const std::string& what) { throw InputError("[embedding_bag] " + what); }

// The first bag of a chunk.
struct ChunkStart {
  int64_t user;
  int64_t column;
  int64_t position;  // in rows
};

struct Split {
  ChunkStart starts[kMaxChunks + 1];
  int64_t num_chunks = 0;
};

// Checks the lengths and cuts the bags into at most `wanted` runs of about as many rows each. A run
// begins with a user, except where one has many rows.
void split_bags(Span<const BagColumn> columns, const BagInput& input, int64_t wanted,
                Split& split) {
  const int64_t total = input.rows.size;
  const int64_t share = total / wanted;
  int64_t position = 0;
  for (int64_t user = 0; user < input.lengths.rows; ++user) {
    const int64_t first = position;
    for (int64_t c = 0; c < columns.size; ++c) {
      const bool is_due = split.num_chunks < wanted && position >= split.num_chunks * share;
      if (is_due && (c == 0 || position - first >= share / 2)) {
        split.starts[split.num_chunks++] = {user, c, position};
      }
      const int64_t length = input.lengths.row(user)[c];
      if (length < 0 || length > total - position) {
        fail("lengths[" + std::to_string(user) + ", " + std::to_string(c) + "]: expected 0 to " +
             std::to_string(total - position) + ", the rows left; found " + std::to_string(length));
      }
      if (columns[c].pooling == Pooling::kNone && length > columns[c].max_length) {
        fail("lengths[" + std::to_string(user) + ", " + std::to_string(c) +
             "]: expected at most max_length " + std::to_string(columns[c].max_length) +
             ", found " + std::to_string(length));
      }
      position += length;
    }
  }
  if (position != total) {
    fail("lengths: expected to sum to " + std::to_string(total) + ", the rows; found " +
         std::to_string(position));
  }
  split.starts[split.num_chunks] = {input.lengths.rows, 0, total};
}

// Names the first row from there on that is outside its table, if there is one.
void check_rows(Span<const BagColumn> columns, const BagInput& input, ChunkStart begin) {
  int64_t position = begin.position;
  for (int64_t user = begin.user; user < input.lengths.rows; ++user) {
    for (int64_t c = user == begin.user ? begin.column : 0; c < columns.size; ++c) {
      const EmbeddingTable& table = *columns[c].table;
      for (const int64_t end = position + input.lengths.row(user)[c]; position < end; ++position) {
        const int64_t row = input.rows[position];
        if (row >= 0 && row < table.rows) continue;
        fail("table \"" + table.name + "\": rows[" + std::to_string(position) +
             "]: expected 0 to " + std::to_string(table.rows - 1) + ", found " +
             std::to_string(row));
      }
    }
  }
}

bool share_memory(Matrix<float> out, const void* data, int64_t bytes) {
  const auto out_begin = reinterpret_cast<uintptr_t>(out.data);
  const auto out_bytes = static_cast<uintptr_t>(out.rows * out.cols) * sizeof(float);
  const auto begin = reinterpret_cast<uintptr_t>(data);
  if (out_bytes == 0 || bytes == 0) return false;
  return out_begin < begin + static_cast<uintptr_t>(bytes) && begin < out_begin + out_bytes;
}

template <typename T>
bool share_memory(Matrix<float> out, const T* data, int64_t count) {
  return share_memory(out, static_cast<const void*>(data), count * int64_t{sizeof(T)});
}

// What is written must not be read as well.
void check_apart(Span<const BagColumn> columns, const BagInput& input, Matrix<float> out) {
  constexpr const char* kExpected = "out: expected memory of its own, found that of ";
  if (share_memory(out, input.rows.data, input.rows.size)) fail(std::string(kExpected) + "rows");
  const Matrix<const int32_t> lengths = input.lengths;
  if (share_memory(out, lengths.data, lengths.rows * lengths.cols)) {
    fail(std::string(kExpected) + "lengths");
  }
  if (input.weights != nullptr && share_memory(out, input.weights, input.rows.size)) {
    fail(std::string(kExpected) + "weights");
  }
  for (const BagColumn& column : columns) {
    const EmbeddingTable& table = *column.table;
    if (share_memory(out, table.data, table.rows * table.row_bytes) ||
        (table.scales != nullptr && share_memory(out, table.scales, table.rows))) {
      fail(kExpected + ("table \"" + table.name + "\""));
    }
  }
}

// A call whose arguments are checked.
class BagCall {
 public:
  BagCall(Isa isa, Span<const BagColumn> columns, const BagInput& input, Matrix<float> out)
      : kernel_(kernel_for(isa)), columns_(columns), input_(input), out_(out) {}

  // The rest of the first user, whole users, and the front of the last.
  void run(ChunkStart begin, ChunkStart end) const {
    if (begin.user == end.user) return run(begin, 1, end.column);
    if (begin.column > 0) {
      run(begin, 1, columns_.size);
      begin = {begin.user + 1, 0, begin.position + rows(begin.user, begin.column, columns_.size)};
    }
    if (begin.user < end.user) run(begin, end.user - begin.user, columns_.size);
    const int64_t front = rows(end.user, 0, end.column);
    if (end.column > 0) run({end.user, 0, end.position - front}, 1, end.column);
  }

 private:
  int64_t rows(int64_t user, int64_t begin, int64_t end) const {
    int64_t count = 0;
    for (int64_t c = begin; c < end; ++c) count += input_.lengths.row(user)[c];
    return count;
  }

  // Columns from the first bag's up to `end` of some users: of all columns, or of one user.
  void run(ChunkStart first, int64_t users, int64_t end) const {
    const float* weights = input_.weights == nullptr ? nullptr : input_.weights + first.position;
    const bool inside =
        kernel_({columns_.data + first.column, end - first.column,
                 input_.rows.data + first.position, input_.lengths.row(first.user) + first.column,
                 weights, users, out_.row(first.user), out_.cols});
    if (!inside) check_rows(columns_, input_, first);
  }

  EmbeddingBagKernel kernel_;
  Span<const BagColumn> columns_;
  const BagInput& input_;
  Matrix<float> out_;
};

}  // namespace

void check_bag_shapes(Span<const BagColumn> columns, const BagInput& input, Matrix<float> out) {
  if (input.lengths.cols != columns.size) {
    fail("lengths: expected " + std::to_string(columns.size) + " columns, found " +
         std::to_string(input.lengths.cols));
  }
  if (input.lengths.rows != out.rows) {
    fail("out: expected " + std::to_string(input.lengths.rows) + " rows, found " +
         std::to_string(out.rows));
  }
  for (const BagColumn& column : columns) {
    const EmbeddingTable& table = *column.table;
    if (table.row_type == RowType::kInt8 && table.scales == nullptr) {
      fail("table \"" + table.name + "\": expected scales with int8 rows, found none");
    }
    const int64_t slots = column.pooling == Pooling::kNone ? column.max_length : 1;
    const int64_t width = slots * table.dim;
    if (slots < 0 || column.offset < 0 || column.offset > out.cols - width) {
      fail("table \"" + table.name + "\": expected its slice within " + std::to_string(out.cols) +
           " columns, found " + std::to_string(column.offset) + " to " +
           std::to_string(column.offset + width));
    }
  }
  check_apart(columns, input, out);
}

void check_bag_values(Span<const BagColumn> columns, const BagInput& input) {
  Split whole;
  split_bags(columns, input, 1, whole);
  check_rows(columns, input, whole.starts[0]);
}

void embedding_bag(const Context& context, Span<const BagColumn> columns, const BagInput& input,
                   Matrix<float> out) {
  check_bag_shapes(columns, input, out);
  const int64_t threads = threads_of(context.pool);
  // Four chunks a thread even out rows that hit and rows that miss the cache.
  const int64_t wanted = threads == 1 ? 1
                                      : std::clamp<int64_t>(input.rows.size / kRowsPerChunk, 1,
                                                            std::min(kMaxChunks, 4 * threads));
  Split split;
  split_bags(columns, input, wanted, split);

  const BagCall call(context.isa, columns, input, out);
  const auto run_chunk = [&](int64_t i) { call.run(split.starts[i], split.starts[i + 1]); };
  if (split.num_chunks > 1) {
    context.pool->parallel_for(split.num_chunks, run_chunk);
  } else if (split.num_chunks == 1) {
    run_chunk(0);
  }
}

}  // namespace recengine
