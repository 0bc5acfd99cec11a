#pragma once

// Which rows a lane takes, and where their sum goes.

#include <cstdint>

#include "cuda/warp.h"
#include "ops/embedding_bag_cuda_kernel.h"

namespace recengine {

using cuda::kWarpLanes;

__device__ __forceinline__ void report(const BagCall& call) {
  if (call.bad_value != nullptr) *call.bad_value = 1;
}

__device__ __forceinline__ bool in_table(const Column& column, int64_t id) {
  return static_cast<uint64_t>(id) < static_cast<uint64_t>(column.rows);
}

// Where a lane is: its sub-warp takes rows `member`, `member` + `members`, … of a unit; where bags
// are gathered, all rows of the units `unit`, `unit` + `units`, …, kRowsAtOnce of them.
struct Place {
  int64_t unit;
  int units;  // that a block has at once
  int member;
  int members;
  int lane;  // in its sub-warp
};

// `block` is that of the column.
__device__ __forceinline__ Place find_place(const BagCall& call, const Column& column,
                                            int64_t block) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int log_warps = column.gather ? 0 : call.log_warps;
  const int log_bag_lanes = column.log_lanes + column.log_split;
  const int in_warp = kWarpLanes >> log_bag_lanes;
  const int warp_of_bag = warp & ((1 << log_warps) - 1);
  const int sub_warp = lane >> column.log_lanes & ((1 << column.log_split) - 1);
  Place place;
  place.units = (kBagWarps >> log_warps) * in_warp;
  place.unit = block * place.units * (column.gather ? kRowsAtOnce : 1) +
               (warp >> log_warps) * in_warp + (lane >> log_bag_lanes);
  place.member = warp_of_bag << column.log_split | sub_warp;
  place.members = 1 << (log_warps + column.log_split);
  place.lane = lane & ((1 << column.log_lanes) - 1);
  return place;
}

// The rows and the output of a unit.
struct Bag {
  int64_t begin = 0;     // in rows
  int64_t length = 0;    // 0 beyond the last unit
  float* out = nullptr;  // of the whole slot, null beyond the last unit
  int slice = 0;
};

// Where bag `index` begins in the rows. All lanes of a warp call it.
__device__ __forceinline__ int64_t bag_start(const BagCall& call, int64_t index, int lane,
                                             int lanes) {
  if (call.starts != nullptr) return call.starts[index];
  int64_t sum = 0;
  for (int64_t i = lane; i < index; i += lanes) {
    const int32_t length = __ldg(call.lengths + i);
    sum += length > 0 ? length : 0;
  }
  return cuda::warp_sum(sum, lanes);
}

// Lengths that are out of range are cut to what there is. All lanes of a warp call it.
__device__ __forceinline__ Bag find_bag(const BagCall& call, const Column& column, int64_t unit,
                                        int lane) {
  const int64_t per_user = int64_t{column.slots} * column.slices;
  const bool inside = unit < call.batch * per_user;
  if (!inside) unit = 0;
  const int64_t user = per_user == 1 ? unit : unit / per_user;
  const int64_t in_user = unit - user * per_user;
  const int64_t slot = column.slices == 1 ? in_user : in_user / column.slices;
  const int64_t index = user * call.all_columns + column.index;
  const int64_t begin = bag_start(call, index, lane, 1 << column.log_lanes);
  const int64_t length = __ldg(call.lengths + index);
  const int64_t left = call.total - begin;
  const bool last = index == call.batch * call.all_columns - 1;
  if (length < 0 || length > left || (column.none && length > column.max_length) ||
      (last && length < left)) {
    report(call);
  }
  const int64_t kept = length < left ? length : left;  // below 0 when there is none

  Bag bag;
  bag.slice = static_cast<int>(in_user - slot * column.slices);
  bag.begin = column.none ? begin + slot : begin;
  bag.length = !inside ? 0 : column.none ? (slot < kept ? 1 : 0) : kept;
  bag.out =
      inside ? call.out + user * call.out_cols + column.out_offset + slot * column.dim : nullptr;
  return bag;
}

constexpr int64_t kNoRow = -1;

// The id of row i of a bag, kNoRow behind its end. One outside the table is for others to skip.
__device__ __forceinline__ int64_t row_id(const BagCall& call, const Column& column, const Bag& bag,
                                          int64_t i) {
  if (i >= bag.length) return kNoRow;
  const int64_t id = __ldg(call.rows + bag.begin + i);
  if (!in_table(column, id)) report(call);
  return id;
}

}  // namespace recengine
