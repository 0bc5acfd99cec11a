// What the check of every id costs a lookup: the kernel as it is and a copy without the check, in
// turns on one thread. Prints one JSON object, of each case the microseconds of a call in every
// round, with the check and without.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "ops/embedding_bag_kernel.h"
#include "recengine/table.h"

namespace recengine {
bool unchecked_kernel(const BagChunk& chunk);
}  // namespace recengine

namespace {

using recengine::BagChunk;
using recengine::RowType;

constexpr int64_t kTables = 8;
constexpr int32_t kDim = 64;
constexpr int64_t kRowsInPool = int64_t{1} << 20;  // of different ids: more than caches hold
constexpr int kRounds = 61;
constexpr int kSlices = 16;  // of the pool: turns so short that a slow moment hits both kernels

struct Case {
  const char* name;
  RowType row_type;
  int64_t rows;
  int64_t batch;
  int32_t length;
};

constexpr Case kCases[] = {
    {"fp32 in memory, 64 x 20", RowType::kFloat32, 1'000'000, 64, 20},
    {"int8 in memory, 64 x 20", RowType::kFusedInt8, 1'000'000, 64, 20},
    {"int8 in memory, 4096 x 1", RowType::kFusedInt8, 1'000'000, 4096, 1},
    {"fp32 in caches, 64 x 20", RowType::kFloat32, 100, 64, 20},
    {"int8 in caches, 64 x 20", RowType::kFusedInt8, 100, 64, 20},
    {"int8 in caches, 4096 x 1", RowType::kFusedInt8, 100, 4096, 1},
};

double now_us() {
  return std::chrono::duration<double, std::micro>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void run(const Case& what, bool last) {
  std::mt19937_64 random(1);
  const int64_t row_bytes = recengine::packed_row_bytes(what.row_type, kDim);
  // Zeros: the values take no part in what is measured, and no denormals.
  const std::vector<float> memory(static_cast<size_t>(kTables * what.rows * row_bytes) / 4 + 16);
  std::vector<recengine::EmbeddingTable> tables;
  for (int64_t t = 0; t < kTables; ++t) {
    const char* data = reinterpret_cast<const char*>(memory.data()) + t * what.rows * row_bytes;
    tables.push_back(what.row_type == RowType::kFloat32
                         ? recengine::plain_table("", data, what.rows, kDim, what.row_type)
                         : recengine::fused_table("", data, what.rows, kDim, what.row_type,
                                                  recengine::FusedLayout::kTbe, row_bytes));
  }
  std::vector<recengine::BagColumn> columns;
  for (const auto& table : tables) {
    columns.push_back(
        {&table, recengine::Pooling::kSum, 0, static_cast<int64_t>(columns.size()) * kDim});
  }
  const int64_t ids = what.batch * kTables * what.length;
  const std::vector<int32_t> lengths(static_cast<size_t>(what.batch * kTables), what.length);
  const int64_t calls = kRowsInPool / ids;
  std::vector<int64_t> rows(static_cast<size_t>(calls * ids));
  for (int64_t& row : rows) row = static_cast<int64_t>(random() % static_cast<uint64_t>(what.rows));
  std::vector<float> out(static_cast<size_t>(what.batch * kTables * kDim));

  const auto time = [&](bool (*kernel)(const BagChunk&), int slice) {
    const double start = now_us();
    for (int64_t i = calls * slice / kSlices; i < calls * (slice + 1) / kSlices; ++i) {
      const BagChunk chunk = {columns.data(), kTables,       rows.data() + i * ids,
                              lengths.data(), nullptr,       what.batch,
                              out.data(),     kTables * kDim};
      if (!kernel(chunk)) std::fprintf(stderr, "checked_ids: an id was refused\n");
    }
    return (now_us() - start) / static_cast<double>(calls);
  };
  std::printf("  \"%s\": [", what.name);
  for (int round = 0; round < kRounds; ++round) {
    double checked = 0;
    double unchecked = 0;
    for (int turn = 0; turn < kSlices; ++turn) {
      const int other = (turn + kSlices / 2) % kSlices;  // whose rows are in no cache
      const bool checked_first = (round + turn) % 2 == 0;
      if (checked_first) checked += time(recengine::CHECKED_KERNEL, turn);
      unchecked += time(recengine::unchecked_kernel, other);
      if (!checked_first) checked += time(recengine::CHECKED_KERNEL, turn);
    }
    std::printf("%s[%.3f, %.3f]", round > 0 ? ", " : "", checked, unchecked);
  }
  std::printf("]%s\n", last ? "" : ",");
}

}  // namespace

int main() {
  std::printf("{\n");
  for (const Case& what : kCases) run(what, &what == std::end(kCases) - 1);
  std::printf("}\n");
  return 0;
}
