#include "cuda/block_reduce.h"
#include "ops/cosine_topk_device.h"

namespace recengine::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kStaged = 1024;  // values of a query in shared memory at once
constexpr float kLargestCode = 127;
constexpr double kRounding = 2e-6;  // as in coded_queries.cc

// The sum of the squares in order: its bits, and so the unit vector's, are those of normalise().
__device__ double sum_of_squares(const float* query, int dim) {
  __shared__ float staged[kStaged];
  __shared__ double sum;
  if (threadIdx.x == 0) sum = 0;
  for (int first = 0; first < dim; first += kStaged) {
    const int count = min(kStaged, dim - first);
    __syncthreads();
    for (auto i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      staged[i] = query[first + i];
    }
    __syncthreads();
    if (threadIdx.x != 0) continue;
    double squares = sum;
    for (int i = 0; i < count; ++i) {
      squares = __dadd_rn(squares, __dmul_rn(double{staged[i]}, double{staged[i]}));
    }
    sum = squares;
  }
  __syncthreads();
  return sum;
}

// Writes the unit query, zeros behind its dimensions; false when it is not finite.
__device__ bool normalise(const TopKPass& pass, int query) {
  const float* const in = pass.queries + int64_t{query} * pass.items.dim;
  float* const unit = pass.units + int64_t{query} * pass.padded_dim;
  const double squares = sum_of_squares(in, pass.items.dim);
  const bool finite = isfinite(squares);
  const double norm = squares > 0 && finite ? sqrt(squares) : 1;
  for (auto d = static_cast<int>(threadIdx.x); d < pass.padded_dim; d += kThreads) {
    unit[d] = d < pass.items.dim && finite ? static_cast<float>(double{in[d]} / norm) : 0;
  }
  __syncthreads();
  return finite;
}

// What the items' codes are multiplied with: the unit query, turned as they were. The bound on what
// turning rounds holds for sums in any order.
__device__ const float* turned(const TopKPass& pass, int query) {
  const float* const unit = pass.units + int64_t{query} * pass.padded_dim;
  if (pass.items.axes == nullptr) return unit;
  __shared__ float coordinates[kMostRotatedDims];
  const int dim = pass.items.dim;
  for (auto axis = static_cast<int>(threadIdx.x); axis < dim; axis += kThreads) {
    float sum = 0;
    for (int d = 0; d < dim; ++d) sum += unit[d] * pass.items.axes[d * dim + axis];
    coordinates[axis] = sum;
  }
  __syncthreads();
  return coordinates;
}

// As encode() in coded_queries.cc, where the bound is derived.
__device__ void encode(const TopKPass& pass, int query) {
  const float* const values = turned(pass, query);
  const ItemsView& items = pass.items;
  const auto thread = static_cast<int>(threadIdx.x);
  float largest = 0;
  for (int d = thread; d < items.dim; d += kThreads) largest = fmaxf(largest, fabsf(values[d]));
  largest = block_reduce(largest, 0.0f, [](float a, float b) { return fmaxf(a, b); });
  const float scale = largest > 0 ? largest / kLargestCode : 1.0f;
  double squares = 0;
  int8_t* const codes = pass.codes + int64_t{query} * items.steps * kMmaBytes;
  for (int d = thread; d < items.steps * kMmaBytes; d += kThreads) {
    const float value = d < items.dim ? values[d] : 0;
    const float code = fmaxf(-kLargestCode, fminf(rintf(value / scale), kLargestCode));
    const double left = double{value} - double{scale} * double{code};
    squares += left * left;
    codes[d] = static_cast<int8_t>(code);
  }
  squares = block_reduce(squares, 0.0, [](double a, double b) { return a + b; });
  if (thread != 0) return;
  const double error = sqrt(squares);
  const double rounding = kRounding + double(items.dim + 4) * 0x1p-24 + items.turned;
  CodedQuery& coded = pass.coded[query];
  coded.inverse_scale = 1 / scale;
  coded.slack =
      static_cast<float>((error + rounding) * double{items.largest_norm} * (1 + kRounding));
  coded.error_share = static_cast<float>((1 + items.turned + error) * (1 + kRounding));
}

__device__ void refuse(const TopKPass& pass, int query) {
  for (int64_t i = threadIdx.x; i < pass.k; i += kThreads) write_item(pass, query, i, 0);
  if (threadIdx.x != 0) return;
  if (pass.bad_value != nullptr) *pass.bad_value = 1;
  if (pass.certificates != nullptr) pass.certificates[query] = {kMinusInfinity, 0, -1, -1};
}

__global__ void __launch_bounds__(kThreads) prepare(TopKPass pass) {
  const auto query = static_cast<int>(blockIdx.x);
  if (!normalise(pass, query)) {
    refuse(pass, query);
    return;
  }
  if (uses_codes(pass)) encode(pass, query);
  if (threadIdx.x != 0) return;
  leave_open(pass, query, uses_codes(pass) ? 0 : kRounds);
}

}  // namespace

void prepare_queries(const TopKPass& pass, cudaStream_t stream) {
  launch(prepare, static_cast<unsigned>(pass.count), kThreads, 0, stream, pass);
}

}  // namespace recengine::cuda
