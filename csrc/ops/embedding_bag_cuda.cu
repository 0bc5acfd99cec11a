// A look-up is bound by how many bytes are on their way at once. So a row is read by no more lanes
// than it has 16-byte parts, several rows of a bag are loaded before the first is added, and what a
// kernel reads to find them, ids and scales, is loaded a round earlier. All columns go in one
// launch; a block has bags of one column, so that its warps agree on the row type.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "cuda/prefix_sum.h"
#include "cuda/value_check.h"
#include "cuda/warp.h"
#include "ops/embedding_bag_check.h"
#include "ops/embedding_bag_rows_cuda.h"
#include "recengine/error.h"

namespace recengine {
namespace {

using cuda::kWarpLanes;

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpLanes;
constexpr int kUnroll = 4;       // rows that a sub-warp has on their way
constexpr int kMaxColumns = 48;  // of one launch; kernel parameters hold them, at most 4 KiB
constexpr int kMaxValues = 32;   // of a lane: 16 bytes of 4-bit codes
// Up to here every warp adds up the lengths before its bags itself, which saves two launches.
constexpr int64_t kMaxOwnStarts = 256;

// A bag with pooling "none" counts as max_length bags of at most one row; a row of more than 32
// parts counts as several slices. A unit is a slice of a bag.
struct Column {
  const char* data;
  const float* scales;
  int64_t rows;
  int64_t row_bytes;
  int64_t out_offset;
  int32_t dim;
  int32_t slots;       // bags that a bag counts as
  int32_t max_length;  // with pooling "none"
  int32_t slices;
  int32_t scale_at;
  uint32_t first_block;
  uint32_t index;  // among all columns of the call
  RowType row_type;
  bool mean;
  bool none;
  bool half_scale;
  bool scale_aligned;
  bool wide;  // rows and parts begin at multiples of 16 bytes
  uint8_t codes_at;
  uint8_t log_lanes;  // lanes that read a row
  uint8_t log_split;  // sub-warps of a warp that share a bag
};

struct BagCall {
  const int64_t* rows;
  const int32_t* lengths;
  const float* weights;   // or null
  const int64_t* starts;  // of bags in rows, or null
  int64_t total;          // rows
  int64_t batch;
  float* out;
  int64_t out_cols;
  int* bad_value;       // set when a length or a row is out of range, or null
  int32_t all_columns;  // of the call
  int32_t num_columns;  // of this launch
  int32_t log_warps;    // warps of a block that share a bag
};

struct Columns {
  Column column[kMaxColumns];
};

__device__ __forceinline__ void report(const BagCall& call) {
  if (call.bad_value != nullptr) *call.bad_value = 1;
}

// Where a lane is: its sub-warp takes rows `member`, `member` + `members`, … of a unit.
struct Place {
  int64_t unit;
  int member;
  int members;
  int lane;  // in its sub-warp
};

__device__ __forceinline__ Place find_place(const BagCall& call, const Column& column) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int log_bag_lanes = column.log_lanes + column.log_split;
  const int bags_per_warp = kWarpLanes >> log_bag_lanes;
  const int group = warp >> call.log_warps;
  const int warp_in_group = warp & ((1 << call.log_warps) - 1);
  const int sub_warp = lane >> column.log_lanes & ((1 << column.log_split) - 1);
  const int64_t block = blockIdx.x - column.first_block;
  Place place;
  place.unit =
      (block * (kWarps >> call.log_warps) + group) * bags_per_warp + (lane >> log_bag_lanes);
  place.member = warp_in_group << column.log_split | sub_warp;
  place.members = 1 << (call.log_warps + column.log_split);
  place.lane = lane & ((1 << column.log_lanes) - 1);
  return place;
}

// The rows and the output of a unit.
struct Bag {
  int64_t begin;   // in rows
  int64_t length;  // 0 beyond the last unit
  float* out;      // of the whole slot, null beyond the last unit
  int slice;
};

// Where bag `index` begins in the rows. All lanes of a warp call it.
__device__ __forceinline__ int64_t bag_start(const BagCall& call, int64_t index, const Place& place,
                                             int lanes) {
  if (call.starts != nullptr) return call.starts[index];
  int64_t sum = 0;
  for (int64_t i = place.lane; i < index; i += lanes) {
    const int32_t length = __ldg(call.lengths + i);
    sum += length > 0 ? length : 0;
  }
  return cuda::warp_sum(sum, lanes);
}

// Lengths that are out of range are cut to what there is.
__device__ __forceinline__ Bag find_bag(const BagCall& call, const Column& column,
                                        const Place& place) {
  const int64_t per_user = int64_t{column.slots} * column.slices;
  const bool inside = place.unit < call.batch * per_user;
  const int64_t unit = inside ? place.unit : 0;
  const int64_t user = per_user == 1 ? unit : unit / per_user;
  const auto in_user = static_cast<int>(unit - user * per_user);
  const int slot = column.slices == 1 ? in_user : in_user / column.slices;
  const int64_t index = user * call.all_columns + column.index;
  const int64_t begin = bag_start(call, index, place, 1 << column.log_lanes);
  const int64_t length = __ldg(call.lengths + index);
  const int64_t left = call.total - begin;
  const bool last = index == call.batch * call.all_columns - 1;
  if (length < 0 || length > left || (column.none && length > column.max_length) ||
      (last && length < left)) {
    report(call);
  }
  const int64_t kept = length < left ? length : left;  // below 0 when there is none

  Bag bag;
  bag.slice = in_user - slot * column.slices;
  bag.begin = column.none ? begin + slot : begin;
  bag.length = !inside ? 0 : column.none ? (slot < kept ? 1 : 0) : kept;
  bag.out = inside
                ? call.out + user * call.out_cols + column.out_offset + int64_t{slot} * column.dim
                : nullptr;
  return bag;
}

// A row on its way.
template <RowType kType, bool kWide>
struct Row {
  RowPart<kType, kWide> part;
  float factor;
  float bias;

  // Rows outside the table are zeros, `id` below 0 is none at all.
  __device__ __forceinline__ void load(const BagCall& call, const Column& column, int64_t id,
                                       int64_t position, int64_t byte, bool has_part) {
    part.clear();
    factor = 1;
    bias = 0;
    if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(column.rows)) return;
    const char* const row = column.data + id * column.row_bytes;
    if (has_part) part.load(row + byte);
    if constexpr (kHasBias<kType>) {
      const ScaleAndBias found =
          load_scale_and_bias(row + column.scale_at, column.half_scale, column.scale_aligned);
      factor = found.scale;
      bias = found.bias;
    } else if constexpr (kType == RowType::kInt8) {
      factor = __ldg(column.scales + id);
    }
    if (call.weights != nullptr) {
      const float weight = __ldg(call.weights + position);
      factor = __fmul_rn(factor, weight);
      bias = __fmul_rn(bias, weight);
    }
  }
};

// Adds this sub-warp's rows of the bag to sums[0 .. kValues), their biases to sums[kValues].
template <RowType kType, bool kWide>
__device__ __forceinline__ void pool_rows(const BagCall& call, const Column& column,
                                          const Place& place, const Bag& bag, float* sums) {
  using Part = RowPart<kType, kWide>;
  const int64_t byte = ((int64_t{bag.slice} << column.log_lanes) + place.lane) * Part::kBytes +
                       (kWide ? 0 : column.codes_at);
  const int64_t codes_end = column.codes_at + (int64_t{column.dim} * kValueBits<kType> + 7) / 8;
  const bool has_part = byte < codes_end;
  const int64_t step = place.members;
  int64_t ids[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t i = place.member + u * step;
    ids[u] = i < bag.length ? __ldg(call.rows + bag.begin + i) : 0;
  }
  for (int64_t first = place.member; first < bag.length; first += kUnroll * step) {
    Row<kType, kWide> rows[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = first + u * step;
      const bool inside =
          static_cast<uint64_t>(ids[u]) < static_cast<uint64_t>(column.rows) || i >= bag.length;
      if (!inside) report(call);
      rows[u].load(call, column, i < bag.length ? ids[u] : -1, bag.begin + i, byte, has_part);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = first + (kUnroll + u) * step;
      ids[u] = i < bag.length ? __ldg(call.rows + bag.begin + i) : 0;
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      rows[u].part.add_to(sums, rows[u].factor);
      if constexpr (kHasBias<kType>) sums[Part::kValues] += rows[u].bias;
    }
  }
}

// Adds up what the sub-warps and the warps that share a bag have summed. All threads of the block
// call it; the first lanes of the bag get the sums.
template <int kSums>
__device__ __forceinline__ void fold(const BagCall& call, const Column& column, float* sums) {
  const int bag_lanes = 1 << (column.log_lanes + column.log_split);
  for (int distance = 1 << column.log_lanes; distance < bag_lanes; distance *= 2) {
#pragma unroll
    for (int v = 0; v < kSums; ++v) {
      sums[v] = __fadd_rn(sums[v], __shfl_xor_sync(cuda::kAllLanes, sums[v], distance));
    }
  }
  if (call.log_warps == 0) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  auto* const parts = cuda::dynamic_shared<float>();  // [kWarps, kSums, kWarpLanes]
#pragma unroll
  for (int v = 0; v < kSums; ++v) parts[(warp * kSums + v) * kWarpLanes + lane] = sums[v];
  __syncthreads();
  const int num_warps = 1 << call.log_warps;
  if ((warp & (num_warps - 1)) != 0) return;
  for (int w = warp + 1; w < warp + num_warps; ++w) {
#pragma unroll
    for (int v = 0; v < kSums; ++v) {
      sums[v] = __fadd_rn(sums[v], parts[(w * kSums + v) * kWarpLanes + lane]);
    }
  }
}

__device__ __forceinline__ float finished(const Bag& bag, const Column& column, float sum,
                                          float bias) {
  const float total = __fadd_rn(sum, bias);
  return column.mean && bag.length > 1 ? __fdiv_rn(total, static_cast<float>(bag.length)) : total;
}

// A lane's sums are next to each other in the row; parts of 16 bytes may begin before the codes and
// end behind them.
template <RowType kType, bool kWide>
__device__ __forceinline__ void store(const Column& column, const Place& place, const Bag& bag,
                                      const float* sums) {
  using Part = RowPart<kType, kWide>;
  const int64_t part = (int64_t{bag.slice} << column.log_lanes) + place.lane;
  const int64_t before = kWide ? int64_t{column.codes_at} * 8 / kValueBits<kType> : 0;
  const int64_t first = part * Part::kValues - before;
  const float bias = kHasBias<kType> ? sums[Part::kValues] : 0.0f;
  constexpr int kGroup = Part::kValues < 4 ? Part::kValues : 4;
#pragma unroll
  for (int v = 0; v < Part::kValues; v += kGroup) {
    const int64_t at = first + v;
    float values[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) values[i] = finished(bag, column, sums[v + i], bias);
    if constexpr (kGroup == 4) {
      if (at >= 0 && at + 4 <= column.dim &&
          reinterpret_cast<uintptr_t>(bag.out + at) % sizeof(float4) == 0) {
        *reinterpret_cast<float4*>(bag.out + at) =
            make_float4(values[0], values[1], values[2], values[3]);
        continue;
      }
    }
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (at + i >= 0 && at + i < column.dim) bag.out[at + i] = values[i];
    }
  }
}

template <RowType kType, bool kWide>
__device__ __forceinline__ void pool(const BagCall& call, const Column& column, const Place& place,
                                     const Bag& bag) {
  constexpr int kSums = RowPart<kType, kWide>::kValues + (kHasBias<kType> ? 1 : 0);
  float sums[kSums] = {};
  pool_rows<kType, kWide>(call, column, place, bag, sums);
  fold<kSums>(call, column, sums);
  if (place.member == 0 && bag.out != nullptr) store<kType, kWide>(column, place, bag, sums);
}

template <RowType kType>
__device__ __forceinline__ void pool(const BagCall& call, const Column& column, const Place& place,
                                     const Bag& bag) {
  if (column.wide) {
    pool<kType, true>(call, column, place, bag);
  } else {
    pool<kType, false>(call, column, place, bag);
  }
}

__global__ void __launch_bounds__(kThreads)
    embedding_bag_kernel(const BagCall call, const __grid_constant__ Columns columns) {
  int c = 0;
  while (c + 1 < call.num_columns && columns.column[c + 1].first_block <= blockIdx.x) ++c;
  const Column& column = columns.column[c];
  const Place place = find_place(call, column);
  const Bag bag = find_bag(call, column, place);
  switch (column.row_type) {
    case RowType::kFloat32:
      return pool<RowType::kFloat32>(call, column, place, bag);
    case RowType::kFloat16:
      return pool<RowType::kFloat16>(call, column, place, bag);
    case RowType::kBfloat16:
      return pool<RowType::kBfloat16>(call, column, place, bag);
    case RowType::kInt8:
      return pool<RowType::kInt8>(call, column, place, bag);
    case RowType::kFusedInt8:
      return pool<RowType::kFusedInt8>(call, column, place, bag);
    case RowType::kFusedInt4:
      return pool<RowType::kFusedInt4>(call, column, place, bag);
  }
}

// ---- host ---------------------------------------------------------------------------------------

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

// `mean_length` is that of all bags of the call.
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
  column.log_lanes = static_cast<uint8_t>(log2_up(parts, 5));
  column.slices = static_cast<int32_t>(std::max<int64_t>((parts + kWarpLanes - 1) / kWarpLanes, 1));
  const int64_t sub_warps = column.none ? 1 : (mean_length + kUnroll - 1) / kUnroll;
  column.log_split = static_cast<uint8_t>(log2_up(sub_warps, 5 - column.log_lanes));
  return column;
}

int64_t num_units(const Column& column, int64_t batch) {
  return batch * column.slots * column.slices;
}

int64_t num_blocks(const Column& column, int64_t batch, int log_warps) {
  const int64_t units = (int64_t{kWarps} >> log_warps) << (5 - column.log_lanes - column.log_split);
  return (num_units(column, batch) + units - 1) / units;
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
    warps += num_blocks(column, batch, 0) * kWarps;
    log_lanes = std::max<int>(log_lanes, column.log_lanes);
  }
  const int64_t rows_at_once = int64_t{kUnroll} << (5 - log_lanes);
  int log_warps = 0;
  while (1 << (log_warps + 1) <= kWarps && mean_length >> log_warps > rows_at_once &&
         warps << (log_warps + 1) <= int64_t{processors} * 2 * kWarps) {
    ++log_warps;
  }
  return log_warps;
}

// Launches the kernel over up to kMaxColumns columns at a time.
void launch_columns(BagCall call, std::vector<Column>& columns, cudaStream_t stream) {
  const size_t shared = call.log_warps == 0 ? 0 : sizeof(float) * kThreads * (kMaxValues + 1);
  for (size_t begin = 0; begin < columns.size(); begin += kMaxColumns) {
    const size_t end = std::min(columns.size(), begin + kMaxColumns);
    Columns part;
    int64_t blocks = 0;
    for (size_t c = begin; c < end; ++c) {
      columns[c].first_block = static_cast<uint32_t>(blocks);
      part.column[c - begin] = columns[c];
      blocks += num_blocks(columns[c], call.batch, call.log_warps);
    }
    if (blocks > INT32_MAX) {
      throw InputError("[embedding_bag] lengths: expected fewer bags on a GPU, found " +
                       std::to_string(call.batch) + " users");
    }
    call.num_columns = static_cast<int32_t>(end - begin);
    cuda::launch(embedding_bag_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), shared,
                 stream, call, part);
  }
}

// On the host, where the message is made.
[[noreturn]] void fail_values(const CudaContext& context, Span<const BagColumn> columns,
                              const BagInput& input) {
  const int64_t bags = input.lengths.rows * input.lengths.cols;
  std::vector<int64_t> rows(static_cast<size_t>(input.rows.size));
  std::vector<int32_t> lengths(static_cast<size_t>(bags));
  copy_to_host(rows.data(), input.rows.data, input.rows.size * 8, context.device, context.stream);
  copy_to_host(lengths.data(), input.lengths.data, bags * 4, context.device, context.stream);
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
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const cuda::ValueCheck values("[embedding_bag]", context);

  const int64_t mean_length = (input.rows.size + bags - 1) / bags;
  std::vector<Column> described;
  for (int64_t c = 0; c < columns.size; ++c) {
    described.push_back(describe(columns[c], c, mean_length));
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
  call.log_warps = choose_log_warps(described, call.batch, mean_length);
  std::optional<cuda::DeviceBuffer<int64_t>> starts;
  if (bags > kMaxOwnStarts) starts.emplace(cuda::prefix_sums(call.lengths, bags, stream));
  call.starts = starts ? starts->data() : nullptr;
  launch_columns(call, described, stream);
  if (values.failed()) fail_values(context, columns, input);
}

}  // namespace recengine
