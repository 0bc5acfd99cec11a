// A look-up is bound by how many bytes are on their way at once. So a row is read by no more lanes
// than it has 16-byte parts, several rows are loaded before the first is added, and the ids that
// say where they are come a round earlier. All columns go in one launch; a block has bags of one
// column, so that its warps agree on the row type.

#include <algorithm>
#include <cstdint>

#include "cuda/launch.h"
#include "ops/embedding_bag_cuda_kernel.h"
#include "ops/embedding_bag_cuda_rows.h"
#include "ops/embedding_bag_cuda_source.h"
#include "ops/embedding_bag_cuda_units.h"

namespace recengine {
namespace {

constexpr int kThreads = kBagWarps * kWarpLanes;
constexpr int kMaxSums = 33;  // of a lane: 16 bytes of 4-bit codes, and the biases

// The part of each row that a lane reads.
struct Reach {
  int64_t part;  // number in the row
  int64_t byte;
  bool inside;  // whether it has codes at all
};

template <RowType kType, bool kWide>
__device__ __forceinline__ Reach find_reach(const Column& column, int slice, int lane) {
  Reach reach;
  reach.part = (int64_t{slice} << column.log_lanes) + lane;
  reach.byte = reach.part * RowPart<kType, kWide>::kBytes + (kWide ? 0 : column.codes_at);
  reach.inside = reach.byte < column.codes_at + (int64_t{column.dim} * kValueBits<kType> + 7) / 8;
  return reach;
}

// A row on its way.
template <RowType kType, bool kWide>
struct Row {
  RowPart<kType, kWide> part;
  float factor;
  float bias;

  // Rows outside the table, kNoRow among them, are zeros and are not read.
  template <bool kCached>
  __device__ __forceinline__ void load(const BagCall& call, const Column& column,
                                       const Source<kCached>& source,
                                       typename Source<kCached>::Found found, int64_t id,
                                       int64_t position, const Reach& reach) {
    part.clear();
    factor = 1;
    bias = 0;
    if (!in_table(column, id)) return;
    const char* const row = source.row(column, id, found);
    if (reach.inside) part.load(row + reach.byte);
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

  // Values to sums[0 .. kValues), the bias to sums[kValues].
  __device__ __forceinline__ void add_to(float* sums) const {
    part.add_to(sums, factor);
    if constexpr (kHasBias<kType>) sums[part.kValues] = __fadd_rn(sums[part.kValues], bias);
  }
};

template <RowType kType, bool kWide>
constexpr int kSums = RowPart<kType, kWide>::kValues + (kHasBias<kType> ? 1 : 0);

// Adds this sub-warp's rows of a bag.
template <RowType kType, bool kWide, bool kCached>
__device__ __forceinline__ void add_rows(const BagCall& call, const Column& column,
                                         const Source<kCached>& source, const Place& place,
                                         const Bag& bag, const Reach& reach, float* sums) {
  const int64_t step = place.members;
  int64_t ids[kRowsAtOnce];
#pragma unroll
  for (int r = 0; r < kRowsAtOnce; ++r) {
    ids[r] = row_id(call, column, bag, place.member + r * step);
  }
  for (int64_t first = place.member; first < bag.length; first += kRowsAtOnce * step) {
    const int64_t position = bag.begin + first;
    typename Source<kCached>::Probe probes[kRowsAtOnce];
    typename Source<kCached>::Found found[kRowsAtOnce];
    Row<kType, kWide> rows[kRowsAtOnce];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) probes[r] = source.probe(column, ids[r]);
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      found[r] = source.find(column, ids[r], probes[r], position + r * step, reach.part == 0);
    }
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      rows[r].load(call, column, source, found[r], ids[r], position + r * step, reach);
    }
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      ids[r] = row_id(call, column, bag, first + (kRowsAtOnce + r) * step);
    }
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) rows[r].add_to(sums);
  }
}

// Adds up what the sub-warps and the warps that share a bag have summed. All threads of the block
// call it; the first lanes of the bag get the sums.
template <int kSize>
__device__ __forceinline__ void fold(const BagCall& call, const Column& column, float* sums) {
  const int bag_lanes = 1 << (column.log_lanes + column.log_split);
  for (int distance = 1 << column.log_lanes; distance < bag_lanes; distance *= 2) {
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      sums[v] = __fadd_rn(sums[v], __shfl_xor_sync(cuda::kAllLanes, sums[v], distance));
    }
  }
  if (call.log_warps == 0) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  auto* const parts = cuda::dynamic_shared<float>();  // [kBagWarps, kSize, kWarpLanes]
#pragma unroll
  for (int v = 0; v < kSize; ++v) parts[(warp * kSize + v) * kWarpLanes + lane] = sums[v];
  __syncthreads();
  const int num_warps = 1 << call.log_warps;
  if ((warp & (num_warps - 1)) != 0) return;
  for (int w = warp + 1; w < warp + num_warps; ++w) {
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      sums[v] = __fadd_rn(sums[v], parts[(w * kSize + v) * kWarpLanes + lane]);
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
__device__ __forceinline__ void store(const Column& column, const Bag& bag, const Reach& reach,
                                      const float* sums) {
  using Part = RowPart<kType, kWide>;
  const int64_t before = kWide ? int64_t{column.codes_at} * 8 / kValueBits<kType> : 0;
  const int64_t first = reach.part * Part::kValues - before;
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

template <RowType kType, bool kWide, bool kCached>
__device__ __forceinline__ void pool(const BagCall& call, const Column& column,
                                     const Source<kCached>& source, const Place& place,
                                     const Bag& bag) {
  const Reach reach = find_reach<kType, kWide>(column, bag.slice, place.lane);
  float sums[kSums<kType, kWide>] = {};
  add_rows<kType, kWide>(call, column, source, place, bag, reach, sums);
  fold<kSums<kType, kWide>>(call, column, sums);
  if (place.member == 0 && bag.out != nullptr) store<kType, kWide>(column, bag, reach, sums);
}

// Bags of about one row: the first rows of several are on their way at once.
template <RowType kType, bool kWide, bool kCached>
__device__ __forceinline__ void gather(const BagCall& call, const Column& column,
                                       const Source<kCached>& source, const Place& place,
                                       const Bag (&bags)[kRowsAtOnce]) {
  int64_t ids[kRowsAtOnce];
  typename Source<kCached>::Probe probes[kRowsAtOnce];
  typename Source<kCached>::Found found[kRowsAtOnce];
  Row<kType, kWide> rows[kRowsAtOnce];
#pragma unroll
  for (int r = 0; r < kRowsAtOnce; ++r) ids[r] = row_id(call, column, bags[r], 0);
#pragma unroll
  for (int r = 0; r < kRowsAtOnce; ++r) probes[r] = source.probe(column, ids[r]);
#pragma unroll
  for (int r = 0; r < kRowsAtOnce; ++r) {
    const bool first = bags[r].slice == 0 && place.lane == 0;
    found[r] = source.find(column, ids[r], probes[r], bags[r].begin, first);
  }
#pragma unroll
  for (int r = 0; r < kRowsAtOnce; ++r) {
    const Reach reach = find_reach<kType, kWide>(column, bags[r].slice, place.lane);
    rows[r].load(call, column, source, found[r], ids[r], bags[r].begin, reach);
  }
#pragma unroll
  for (int r = 0; r < kRowsAtOnce; ++r) {
    const Reach reach = find_reach<kType, kWide>(column, bags[r].slice, place.lane);
    float sums[kSums<kType, kWide>] = {};
    rows[r].add_to(sums);
    for (int64_t i = 1; i < bags[r].length; ++i) {
      const int64_t id = row_id(call, column, bags[r], i);
      const int64_t position = bags[r].begin + i;
      const auto at = source.find(column, id, source.probe(column, id), position, reach.part == 0);
      rows[r].load(call, column, source, at, id, position, reach);
      rows[r].add_to(sums);
    }
    if (bags[r].out != nullptr) store<kType, kWide>(column, bags[r], reach, sums);
  }
}

template <RowType kType, bool kWide, bool kCached>
__device__ __forceinline__ void run(const BagCall& call, const Column& column,
                                    const Source<kCached>& source, const Place& place,
                                    const Bag (&bags)[kRowsAtOnce]) {
  if (column.gather) {
    gather<kType, kWide>(call, column, source, place, bags);
  } else {
    pool<kType, kWide>(call, column, source, place, bags[0]);
  }
}

template <RowType kType, bool kCached>
__device__ __forceinline__ void run_type(const BagCall& call, const Column& column,
                                         const Source<kCached>& source, const Place& place,
                                         const Bag (&bags)[kRowsAtOnce]) {
  if (column.wide) {
    run<kType, true>(call, column, source, place, bags);
  } else {
    run<kType, false>(call, column, source, place, bags);
  }
}

// Of a launch.
template <int kMost>
struct Columns {
  uint32_t first_block[kMost];
  Column column[kMost];
};
static_assert(sizeof(BagCall) + sizeof(Columns<kFewColumns>) <= 4096);
static_assert(sizeof(BagCall) + sizeof(Columns<kMaxColumns>) <= 32764);

// The column that a block belongs to: the last one that begins at it or before.
template <int kMost>
__device__ __forceinline__ int find_column(const BagCall& call, const Columns<kMost>& columns) {
  int column = 0;
  for (int end = call.num_columns; end - column > 1;) {
    const int middle = (column + end) / 2;
    if (columns.first_block[middle] <= blockIdx.x) {
      column = middle;
    } else {
      end = middle;
    }
  }
  return column;
}

// Columns without a cache get a kernel of their own, so that they pay nothing for one.
template <bool kCached, int kMost>
__global__ void __launch_bounds__(kThreads)
    embedding_bag_kernel(const BagCall call, const __grid_constant__ Columns<kMost> columns) {
  const int c = find_column(call, columns);
  const Column& column = columns.column[c];
  const Source<kCached> source(call, c);
  const Place place = find_place(call, column, blockIdx.x - columns.first_block[c]);
  Bag bags[kRowsAtOnce];
#pragma unroll
  for (int r = 0; r < kRowsAtOnce; ++r) {
    if (r > 0 && !column.gather) break;
    bags[r] = find_bag(call, column, place.unit + int64_t{r} * place.units, place.lane);
  }
  switch (column.row_type) {
    case RowType::kFloat32:
      return run_type<RowType::kFloat32>(call, column, source, place, bags);
    case RowType::kFloat16:
      return run_type<RowType::kFloat16>(call, column, source, place, bags);
    case RowType::kBfloat16:
      return run_type<RowType::kBfloat16>(call, column, source, place, bags);
    case RowType::kInt8:
      return run_type<RowType::kInt8>(call, column, source, place, bags);
    case RowType::kFusedInt8:
      return run_type<RowType::kFusedInt8>(call, column, source, place, bags);
    case RowType::kFusedInt4:
      return run_type<RowType::kFusedInt4>(call, column, source, place, bags);
  }
}

template <int kMost>
void launch(const BagCall& call, const uint32_t* first_block, const Column* columns, int64_t blocks,
            cudaStream_t stream) {
  Columns<kMost> given{};
  std::copy_n(first_block, call.num_columns, given.first_block);
  std::copy_n(columns, call.num_columns, given.column);
  const size_t shared = call.log_warps == 0 ? 0 : sizeof(float) * kThreads * kMaxSums;
  const auto kernel = call.caches == nullptr ? embedding_bag_kernel<false, kMost>
                                             : embedding_bag_kernel<true, kMost>;
  cuda::launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), shared, stream, call,
               given);
}

}  // namespace

void launch_embedding_bag(const BagCall& call, const uint32_t* first_block, const Column* columns,
                          int64_t blocks, cudaStream_t stream) {
  if (call.num_columns <= kFewColumns) {
    launch<kFewColumns>(call, first_block, columns, blocks, stream);
  } else {
    launch<kMaxColumns>(call, first_block, columns, blocks, stream);
  }
}

}  // namespace recengine
