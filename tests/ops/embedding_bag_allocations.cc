// Counts what calls of embedding_bag() allocate. Ends with status 1 and a message when that is more
// than nothing.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/thread_pool.h"
#include "recengine/ops/embedding_bag.h"

namespace {

std::atomic<int64_t> allocations{0};

}  // namespace

// In place of the C library's, which those of C++ call.
extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* memory, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);

void* malloc(size_t bytes) {
  ++allocations;
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
  ++allocations;
  return __libc_calloc(count, bytes);
}
void* realloc(void* memory, size_t bytes) {
  ++allocations;
  return __libc_realloc(memory, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) {
  ++allocations;
  return __libc_memalign(alignment, bytes);
}
}

namespace recengine {
namespace {

constexpr int64_t kRows = 50;
constexpr int32_t kDim = 100;
constexpr int32_t kLongest = 200;

struct Stored {
  std::vector<uint8_t> bytes = std::vector<uint8_t>(kRows * 500);
  std::vector<float> scales = std::vector<float>(kRows, 1.0f);
};

std::vector<EmbeddingTable> make_tables(const Stored& stored) {
  const void* const data = stored.bytes.data();
  return {
      plain_table("fp32", data, kRows, kDim, RowType::kFloat32),
      plain_table("fp16", data, kRows, kDim, RowType::kFloat16),
      plain_table("bf16", data, kRows, kDim, RowType::kBfloat16),
      plain_table("int8", data, kRows, kDim, RowType::kInt8, stored.scales.data()),
      fused_table("fused", data, kRows, kDim, RowType::kFusedInt8, FusedLayout::kTbe, 104),
      fused_table("int4", data, kRows, kDim, RowType::kFusedInt4, FusedLayout::kRowwise, 54),
  };
}

// Of a call with bags of 0 to kLongest - 1 rows for so many users.
int64_t count(const Context& context, const std::vector<BagColumn>& columns, int64_t users) {
  std::vector<int32_t> lengths(static_cast<size_t>(users) * columns.size());
  std::vector<int64_t> rows;
  for (size_t bag = 0; bag < lengths.size(); ++bag) {
    lengths[bag] = static_cast<int32_t>(bag * 37 % kLongest);
    for (int32_t i = 0; i < lengths[bag]; ++i) rows.push_back((7 * i) % kRows);
  }
  const std::vector<float> weights(rows.size(), 0.5f);
  const BagColumn& last = columns.back();
  const int64_t width = last.offset + kDim * (last.pooling == Pooling::kNone ? kLongest : 1);
  std::vector<float> out(static_cast<size_t>(users * width));
  const Matrix<const int32_t> shape(lengths.data(), users, static_cast<int64_t>(columns.size()));
  const int64_t before = allocations;
  embedding_bag(context, columns, {rows, shape, nullptr}, {out.data(), users, width});
  embedding_bag(context, columns, {rows, shape, weights.data()}, {out.data(), users, width});
  return allocations - before;
}

bool allocates(const Context& context, const std::vector<EmbeddingTable>& tables) {
  for (const Pooling pooling : {Pooling::kSum, Pooling::kMean, Pooling::kNone}) {
    std::vector<BagColumn> columns;
    for (const EmbeddingTable& table : tables) {
      const int64_t width = pooling == Pooling::kNone ? kDim * kLongest : kDim;
      const auto place = static_cast<int64_t>(columns.size());
      columns.push_back({&table, pooling, kLongest, place * width});
    }
    for (const int64_t users : {1, 60}) {  // 60: worth several threads
      const int64_t found = count(context, columns, users);
      if (found == 0) continue;
      std::printf("%s, %d threads, %d users: expected no allocation, found %d\n",
                  isa_name(context.isa).c_str(), static_cast<int>(threads_of(context.pool)),
                  static_cast<int>(users), static_cast<int>(found));
      return true;
    }
  }
  return false;
}

bool any_allocates() {
  const Stored stored;
  const std::vector<EmbeddingTable> tables = make_tables(stored);
  if (allocations == 0) {
    std::printf("expected that vectors are counted\n");
    return true;
  }
  ThreadPool pool(2);
  for (const Isa isa : isas()) {
    if (!isa_supported(isa)) continue;
    if (allocates({nullptr, isa}, tables) || allocates({&pool, isa}, tables)) return true;
  }
  return false;
}

}  // namespace
}  // namespace recengine

int main() { return recengine::any_allocates() ? 1 : 0; }
