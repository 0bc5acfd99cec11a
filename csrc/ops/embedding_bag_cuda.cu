#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "cuda/prefix_sum.h"
#include "cuda/value_check.h"
#include "ops/embedding_bag_check.h"
#include "ops/embedding_bag_cuda_kernel.h"
#include "ops/row_cache.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr int kLogWarpLanes = 5;
constexpr int64_t kMaxGatherLength = 2;
// Up to here every warp adds up the lengths before its bags itself, which saves two launches.
constexpr int64_t kMaxOwnStarts = 256;

int value_bits(RowType type) {
  switch (type) {
    case RowType::kFloat32:
      return 32;
    case RowType::kFloat16:
    case RowType::kBfloat16:
      return 16;
    case RowType::kInt8:
    case RowType::kFusedInt8:
      return 8;
    case RowType::kFusedInt4:
      return 4;
  }
  return 8;
}

// The least n with 2^n at least `count`, and at most `most`.
int log2_up(int64_t count, int most) {
  int log = 0;
  while (log < most && (int64_t{1} << log) < count) ++log;
  return log;
}

bool aligned(const void* data, int64_t row_bytes, int64_t bytes) {
  return (reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(row_bytes)) %
             static_cast<uintptr_t>(bytes) ==
         0;
}

// About how many rows the bags of each column have, at least 1: where columns say that theirs are
// short, the others share what is left of all rows.
std::vector<int64_t> guess_lengths(Span<const BagColumn> columns, const BagInput& input) {
  std::vector<int64_t> lengths(static_cast<size_t>(columns.size), 0);
  const int64_t batch = input.lengths.rows;
  int64_t left = input.rows.size;
  int64_t open = columns.size;
  int64_t mean = 1;
  for (bool found = true; found && open > 0;) {
    found = false;
    mean = std::max((left + batch * open - 1) / (batch * open), mean);
    for (int64_t c = 0; c < columns.size; ++c) {
      int64_t& length = lengths[static_cast<size_t>(c)];
      const int64_t most = columns[c].max_length;
      if (length > 0 || most <= 0 || most > mean) continue;
      length = most;
      left = std::max<int64_t>(left - batch * most, 0);
      --open;
      found = true;
    }
  }
  for (int64_t& length : lengths) length = length > 0 ? length : mean;
  return lengths;
}

Column describe(const BagColumn& bags, int64_t index, int64_t mean_length) {
  const EmbeddingTable& table = *bags.table;
  const int bits = value_bits(table.row_type);
  Column column{};
  column.data = static_cast<const char*>(table.data);
  column.scales = table.scales;
  column.rows = table.rows;
  column.row_bytes = table.row_bytes;
  column.out_offset = bags.offset;
  column.dim = bags.pooling == Pooling::kNone && bags.max_length == 0 ? 0 : table.dim;
  column.none = bags.pooling == Pooling::kNone;
  column.mean = bags.pooling == Pooling::kMean;
  column.max_length = bags.max_length;
  column.slots = column.none ? std::max(bags.max_length, 1) : 1;
  column.scale_at = table.scale_at;
  column.codes_at = static_cast<uint8_t>(table.codes_at);
  column.index = static_cast<uint32_t>(index);
  column.row_type = table.row_type;
  column.half_scale = table.half_scale;
  column.scale_aligned = table.scale_at % 4 == 0 && aligned(table.data, table.row_bytes, 4);
  column.wide = aligned(table.data, table.row_bytes, 16);
  const int64_t code_bytes = (int64_t{column.dim} * bits + 7) / 8;
  const int64_t part_bytes = column.wide ? 16 : std::max(bits / 8, 1);
  const int64_t read_bytes = code_bytes + (column.wide ? table.codes_at : 0);
  const int64_t parts = (read_bytes + part_bytes - 1) / part_bytes;
  column.log_lanes = static_cast<uint8_t>(log2_up(parts, kLogWarpLanes));
  column.slices = static_cast<int32_t>(
      std::max<int64_t>((parts + (1 << kLogWarpLanes) - 1) >> kLogWarpLanes, 1));
  column.gather = column.none || mean_length <= kMaxGatherLength;
  const int64_t sub_warps = column.gather ? 1 : (mean_length + kRowsAtOnce - 1) / kRowsAtOnce;
  column.log_split = static_cast<uint8_t>(log2_up(sub_warps, kLogWarpLanes - column.log_lanes));
  return column;
}

int64_t num_blocks(const Column& column, int64_t batch, int log_warps) {
  const int log_warp_bags = kLogWarpLanes - column.log_lanes - column.log_split;
  const int64_t block_units = column.gather ? int64_t{kBagWarps * kRowsAtOnce} << log_warp_bags
                                            : int64_t{kBagWarps >> log_warps} << log_warp_bags;
  const int64_t units = batch * column.slots * column.slices;
  return (units + block_units - 1) / block_units;
}

// A few long bags keep a GPU busy only when several warps share each.
int choose_log_warps(const std::vector<Column>& columns, int64_t batch, int64_t mean_length) {
  int device = 0;
  int processors = 0;
  RECENGINE_CUDA_CHECK(cudaGetDevice(&device));
  RECENGINE_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  int64_t warps = 0;
  int log_lanes = 0;
  for (const Column& column : columns) {
    warps += num_blocks(column, batch, 0) * kBagWarps;
    log_lanes = std::max<int>(log_lanes, column.log_lanes);
  }
  const int64_t rows_at_once = int64_t{kRowsAtOnce} << (kLogWarpLanes - log_lanes);
  int log_warps = 0;
  while (1 << (log_warps + 1) <= kBagWarps && mean_length >> log_warps > rows_at_once &&
         warps << (log_warps + 1) <= int64_t{processors} * 2 * kBagWarps) {
    ++log_warps;
  }
  return log_warps;
}

// `caches` are those of the columns.
void launch_part(const CudaContext& context, BagCall call, const uint32_t* first_block,
                 const Column* columns, const std::vector<RowCacheState*>& caches, int64_t blocks) {
  std::optional<CacheReaders> readers;
  const bool cached = std::any_of(caches.begin(), caches.end(),
                                  [](const RowCacheState* cache) { return cache != nullptr; });
  if (cached) readers.emplace(context, caches);
  call.caches = readers ? readers->views() : nullptr;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  launch_embedding_bag(call, first_block, columns, blocks, stream);
}

// Of one launch.
size_t most_columns() {
  static const size_t most = [] {
    int version = 0;
    RECENGINE_CUDA_CHECK(cudaDriverGetVersion(&version));
    return static_cast<size_t>(version >= kManyColumnsVersion ? kMaxColumns : kFewColumns);
  }();
  return most;
}

// Launches the kernel over as many columns at a time as it takes.
void launch_columns(const CudaContext& context, BagCall call, const std::vector<Column>& columns,
                    const std::vector<RowCacheState*>& caches) {
  for (size_t begin = 0; begin < columns.size(); begin += most_columns()) {
    const size_t end = std::min(columns.size(), begin + most_columns());
    std::vector<uint32_t> first_block;
    int64_t blocks = 0;
    for (size_t c = begin; c < end; ++c) {
      first_block.push_back(static_cast<uint32_t>(blocks));
      blocks += num_blocks(columns[c], call.batch, call.log_warps);
    }
    if (blocks > INT32_MAX) {
      throw InputError("[embedding_bag] lengths: expected fewer bags on a GPU, found " +
                       std::to_string(call.batch) + " users");
    }
    call.num_columns = static_cast<int32_t>(end - begin);
    const auto first = caches.begin() + static_cast<std::ptrdiff_t>(begin);
    launch_part(context, call, first_block.data(), &columns[begin],
                {first, first + call.num_columns}, blocks);
  }
}

// On the host, where the message is made.
[[noreturn]] void fail_values(const CudaContext& context, Span<const BagColumn> columns,
                              const BagInput& input) {
  const int64_t bags = input.lengths.rows * input.lengths.cols;
  const std::vector<int64_t> rows = host_copy(context, input.rows.data, input.rows.size);
  const std::vector<int32_t> lengths = host_copy(context, input.lengths.data, bags);
  BagInput copy;
  copy.rows = rows;
  copy.lengths = {lengths.data(), input.lengths.rows, input.lengths.cols};
  check_bag_values(columns, copy);
  throw DeviceError("[embedding_bag] rows and lengths: changed while they were read");
}

}  // namespace

void embedding_bag_cuda(const CudaContext& context, Span<const BagColumn> columns,
                        const BagInput& input, Matrix<float> out) {
  check_bag_shapes(columns, input, out);
  const int64_t bags = input.lengths.rows * input.lengths.cols;
  if (bags == 0) return check_bag_values(columns, input);  // reads nothing
  const cuda::DeviceGuard guard(context.device);
  const cuda::ValueCheck values("[embedding_bag]", context);

  const std::vector<int64_t> lengths = guess_lengths(columns, input);
  std::vector<Column> described;
  std::vector<RowCacheState*> caches;
  for (int64_t c = 0; c < columns.size; ++c) {
    described.push_back(describe(columns[c], c, lengths[static_cast<size_t>(c)]));
    caches.push_back(columns[c].table->cache);
  }
  BagCall call{};
  call.rows = input.rows.data;
  call.lengths = input.lengths.data;
  call.weights = input.weights;
  call.total = input.rows.size;
  call.batch = input.lengths.rows;
  call.out = out.data;
  call.out_cols = out.cols;
  call.bad_value = values.found();
  call.all_columns = static_cast<int32_t>(columns.size);
  call.log_warps =
      choose_log_warps(described, call.batch, *std::max_element(lengths.begin(), lengths.end()));
  std::optional<cuda::DeviceBuffer<int64_t>> starts;
  if (bags > kMaxOwnStarts) starts.emplace(cuda::prefix_sums(context, call.lengths, bags));
  call.starts = starts ? starts->data() : nullptr;
  launch_columns(context, call, described, caches);
  if (values.failed()) fail_values(context, columns, input);
}

}  // namespace recengine
