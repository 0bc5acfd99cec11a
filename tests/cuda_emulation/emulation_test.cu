// What the emulation must report, run by tools/cuda_emulated.sh: an emulation that overlooks a
// fault would let the tests of the kernels pass.

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/wgmma.h"
#include "cuda_runtime.h"

namespace {

constexpr unsigned kAll = ~0u;
bool failed = false;

void expect(bool right, const char* what) {
  if (right) return;
  std::printf("emulation_test: %s\n", what);
  failed = true;
}

template <typename... Args>
cudaError_t run(unsigned threads, size_t shared, void (*kernel)(Args...), Args... args) {
  cudaLaunchConfig_t config;
  config.gridDim = dim3(3);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

template <typename... Args>
void expect_failure(const char* message, void (*kernel)(Args...), Args... args) {
  expect(run(64, 0, kernel, args...) == cudaErrorLaunchFailure, message);
  expect(std::strstr(cudaGetErrorString(cudaErrorLaunchFailure), message) != nullptr, message);
}

__global__ void sum_of_threads(int* sum) {
  __shared__ int of_warps[2];
  int value = static_cast<int>(threadIdx.x);
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAll, value, distance);
  }
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(sum, of_warps[0] + of_warps[1]);
}

__global__ void one_waits_elsewhere() {
  if (threadIdx.x == 3) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}
__global__ void one_has_left() {
  if (threadIdx.x != 3) __syncwarp();
}
__global__ void outside_its_mask() { __ballot_sync(1u, 1); }
__global__ void from_a_lane_outside() {
  if (threadIdx.x < 2) __shfl_xor_sync(3u, 1, 2);
}
__global__ void unaligned(const char* data) { __ldg(reinterpret_cast<const float4*>(data + 4)); }
__global__ void nothing() {}

// ---- products of a warpgroup --------------------------------------------------------------------

enum class Fault {
  kNone,
  kNoProxyFence,
  kNoFence,
  kNoCommit,
  kNoWait,
  kRowsWritten,
  kSumsWritten,
  kSumsRead,
  kDistancesExchanged,
  kSwizzled,
  kBeyondShared,
  kOneWarpMore,
};

constexpr int kTiles = 16;
constexpr int kColumns = 8 * kTiles;
constexpr int kSteps = 2;
constexpr int kBytes = 32 * kSteps;  // of a row, and of a column
constexpr size_t kColumnBytes = size_t{kColumns} * kBytes;

uint64_t columns_of(Fault fault, const uint4* codes, int step) {
  using recengine::cuda::wgmma_columns;
  const uint4* const at = codes + step * 2 * kColumns;
  if (fault == Fault::kDistancesExchanged) return wgmma_columns(at, 16 * kColumns, 128);
  if (fault == Fault::kBeyondShared) return wgmma_columns(at + kColumns, 128, 16 * kColumns);
  return wgmma_columns(at, 128, 16 * kColumns) |
         (fault == Fault::kSwizzled ? uint64_t{1} << 62 : 0);
}

void multiply(Fault fault, const uint4* codes, uint4 (&rows)[kSteps], int32_t (&sums)[kTiles][4]) {
  using namespace recengine::cuda;
  if (fault != Fault::kNoFence) wgmma_fence();
  for (int step = 0; step < kSteps; ++step) {
    wgmma_s8(sums, rows[step], columns_of(fault, codes, step), step > 0);
  }
  if (fault != Fault::kNoCommit) wgmma_commit();
}

// out [64, kColumns] = items [64, kBytes] * queries [kColumns, kBytes].
__global__ void product(Fault fault, const int8_t* items, const int8_t* queries, int32_t* out) {
  using namespace recengine::cuda;
  auto* const codes = static_cast<uint4*>(cuda_emulation::dynamic_shared());
  for (auto i = static_cast<int>(threadIdx.x); i < kSteps * 2 * kColumns; i += kWgmmaThreads) {
    std::memcpy(codes + i, queries + i % kColumns * kBytes + i / kColumns * 16, 16);
  }
  if (fault != Fault::kNoProxyFence) fence_async_proxy();
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4);
  const int part = static_cast<int>(threadIdx.x % 4);
  uint4 rows[kSteps];
  for (int step = 0; step < kSteps; ++step) {
    const int8_t* const from = items + row * kBytes + 32 * step + 4 * part;
    std::memcpy(&rows[step].x, from, 4);
    std::memcpy(&rows[step].y, from + 8 * kBytes, 4);
    std::memcpy(&rows[step].z, from + 16, 4);
    std::memcpy(&rows[step].w, from + 8 * kBytes + 16, 4);
  }
  int32_t sums[kTiles][4] = {};
  multiply(fault, codes, rows, sums);
  if (fault == Fault::kNoWait) return;
  if (fault == Fault::kRowsWritten) ++rows[0].x;
  if (fault == Fault::kSumsWritten) ++sums[3][1];
  const int32_t early = sums[0][0];
  wgmma_wait(sums, rows);
  if (fault == Fault::kSumsRead) sums[0][0] = early;
  if (fault == Fault::kOneWarpMore && row >= 48) {
    multiply(fault, codes, rows, sums);
    wgmma_wait(sums, rows);
  }
  for (int i = 0; i < kTiles * 4; ++i) {
    out[(row + i / 2 % 2 * 8) * kColumns + i / 4 * 8 + 2 * part + i % 2] = sums[i / 4][i % 4];
  }
}

// Runs it; whether the products are right.
bool right_products(Fault fault) {
  std::vector<int8_t> bytes((64 + kColumns) * kBytes);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<int8_t>(i * i * 37 / 11);
  std::vector<int32_t> found(64 * kColumns), expected(found.size());
  const int8_t* const queries = bytes.data() + 64 * kBytes;
  for (int i = 0; i < 64 * kColumns * kBytes; ++i) {
    const int row = i / kBytes / kColumns, column = i / kBytes % kColumns, d = i % kBytes;
    expected[static_cast<size_t>(i / kBytes)] +=
        bytes[static_cast<size_t>(row * kBytes + d)] * queries[column * kBytes + d];
  }
  return run(128, kColumnBytes, product, fault, static_cast<const int8_t*>(bytes.data()), queries,
             found.data()) == cudaSuccess &&
         found == expected;
}

void expect_no_products(const char* message, Fault fault) {
  expect(!right_products(fault), message);
  expect(std::strstr(cudaGetErrorString(cudaErrorLaunchFailure), message) != nullptr, message);
}

void expect_products() {
  expect(right_products(Fault::kNone), "products of a warpgroup");
  expect(!right_products(Fault::kNoProxyFence), "columns that the async proxy has not seen");
  expect(!right_products(Fault::kSumsRead), "sums of a wgmma read before the wait");
  expect(!right_products(Fault::kDistancesExchanged), "a descriptor of another layout");
  expect_no_products("a wgmma without a wgmma_fence", Fault::kNoFence);
  expect_no_products("a wgmma that is not committed", Fault::kNoCommit);
  expect_no_products("a wgmma that nothing waited for", Fault::kNoWait);
  expect_no_products("rows of a wgmma written before the wait", Fault::kRowsWritten);
  expect_no_products("sums of a wgmma written before the wait", Fault::kSumsWritten);
  expect_no_products("descriptor with a swizzle", Fault::kSwizzled);
  expect_no_products("descriptor of what is not in shared memory", Fault::kBeyondShared);
  expect_no_products("threads of a warpgroup whose wgmmas differ", Fault::kOneWarpMore);
}

// ---- graphs -------------------------------------------------------------------------------------

__global__ void add(int* sum, int value) {
  if (blockIdx.x == 0 && threadIdx.x == 0) *sum += value;
}

cudaError_t put_add(cudaStream_t stream, int* sum, int value) {
  cudaLaunchConfig_t config;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, add, sum, value);
}

int read(const int* from) {
  int value = 0;
  expect(cudaMemcpy(&value, from, sizeof value, cudaMemcpyDeviceToHost) == cudaSuccess, "a copy");
  return value;
}

void expect_graphs(int* sum) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  expect(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess, "a stream");
  expect(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed) == cudaSuccess, "a capture");
  expect(cudaMemsetAsync(sum, 0, sizeof *sum, stream) == cudaSuccess, "a captured memset");
  for (int value = 1; value < 4; ++value) put_add(stream, sum, value);
  expect(cudaStreamEndCapture(stream, &graph) == cudaSuccess, "the end of a capture");
  expect(cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess, "an executable graph");
  const int before = 50;
  expect(cudaMemcpy(sum, &before, 4, cudaMemcpyHostToDevice) == cudaSuccess, "a copy");
  for (int launches = 0; launches < 2; ++launches) {
    expect(read(sum) == (launches == 0 ? before : 6), "captured work that ran early");
    expect(cudaGraphLaunch(executable, stream) == cudaSuccess, "a launch of a graph");
  }
  expect(read(sum) == 6, "what a graph computes");
  expect(cudaGraphDestroy(graph) == cudaSuccess, "cudaGraphDestroy");
  expect(cudaGraphExecDestroy(executable) == cudaSuccess, "cudaGraphExecDestroy");

  const auto expect_invalid = [&](auto call, const char* what) {
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
    expect(call() == cudaErrorStreamCaptureUnsupported, what);
    expect(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated, what);
    expect(graph == nullptr, what);
  };
  int host = 0;
  void* taken = nullptr;
  expect_invalid([&] { return cudaStreamSynchronize(stream); }, "a wait in a capture");
  expect_invalid([&] { return cudaMallocFromPoolAsync(&taken, 4, nullptr, stream); },
                 "memory taken in a capture");
  expect_invalid([&] { return cudaMemcpyAsync(&host, sum, 4, cudaMemcpyDeviceToHost, stream); },
                 "a copy to the host in a capture");
  expect(cudaStreamDestroy(stream) == cudaSuccess, "cudaStreamDestroy");
}

// What one thread captures forbids to another.
void expect_disturbed_captures(int* sum) {
  int host = 0;
  void* taken = nullptr;
  const auto copy = [&] { return cudaMemcpy(&host, sum, 4, cudaMemcpyDeviceToHost); };
  const auto take = [&] { return cudaMalloc(&taken, 4); };
  const auto wait = [] { return cudaDeviceSynchronize(); };
  const auto expect_call = [&](unsigned flags, cudaStreamCaptureMode mode,
                               cudaStreamCaptureMode own, auto call, cudaError_t status,
                               const char* what) {
    cudaStream_t stream = nullptr;
    cudaGraph_t graph = nullptr;
    cudaStreamCreateWithFlags(&stream, flags);
    cudaStreamBeginCapture(stream, mode);
    std::thread([&] {
      cudaThreadExchangeStreamCaptureMode(&own);
      expect(call() == status, what);
    }).join();
    const bool spoilt = cudaStreamEndCapture(stream, &graph) != cudaSuccess;
    expect(spoilt == (status != cudaSuccess), what);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    cudaFree(std::exchange(taken, nullptr));
  };
  constexpr auto kGlobal = cudaStreamCaptureModeGlobal;
  constexpr auto kOwn = cudaStreamCaptureModeThreadLocal;
  constexpr auto kRelaxed = cudaStreamCaptureModeRelaxed;
  constexpr auto kImplicit = cudaErrorStreamCaptureImplicit;
  constexpr auto kUnsupported = cudaErrorStreamCaptureUnsupported;
  expect_call(cudaStreamDefault, kOwn, kRelaxed, copy, kImplicit, "the legacy stream");
  expect_call(cudaStreamNonBlocking, kOwn, kGlobal, copy, cudaSuccess, "a stream that waits not");
  expect_call(cudaStreamNonBlocking, kGlobal, kGlobal, take, kUnsupported, "cudaMalloc");
  expect_call(cudaStreamNonBlocking, kGlobal, kRelaxed, take, cudaSuccess, "a relaxed cudaMalloc");
  expect_call(cudaStreamNonBlocking, kOwn, kGlobal, take, cudaSuccess,
              "a capture of its own thread");
  expect_call(cudaStreamNonBlocking, kRelaxed, kGlobal, take, cudaSuccess, "a relaxed capture");
  expect_call(cudaStreamNonBlocking, kRelaxed, kRelaxed, wait, kUnsupported, "a wait for all");
}

// ---- device memory ------------------------------------------------------------------------------

// Whether a process that does so ends with a segmentation fault.
bool crashes(const std::function<void()>& what) {
  const pid_t child = fork();
  if (child == 0) {
    what();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV;
}

void expect_protection(int* sum) {
  volatile int* const from_host = sum;
  expect(crashes([&] { static_cast<void>(*from_host); }), "device memory that the host reads");
  expect(crashes([&] { *from_host = 1; }), "device memory that the host writes");
}

}  // namespace

int main() {
  void* sum = nullptr;
  expect(cudaMalloc(&sum, 64) == cudaSuccess, "cudaMalloc");
  expect(cudaMemsetAsync(sum, 0, 64, nullptr) == cudaSuccess, "cudaMemsetAsync");
  expect(run(64, 0, sum_of_threads, static_cast<int*>(sum)) == cudaSuccess, "a sum");
  int found = read(static_cast<int*>(sum));
  expect(found == 3 * 63 * 64 / 2, "the sum over three blocks");

  expect_failure("waits for ever at __syncthreads", one_waits_elsewhere);
  expect_failure("waits for ever at __syncwarp", one_has_left);
  expect_failure("not in the mask of its own warp primitive", outside_its_mask);
  expect_failure("from a lane that is not in its mask", from_a_lane_outside);
  expect_failure("not aligned", unaligned, static_cast<const char*>(sum));
  expect(run(2048, 0, nothing) == cudaErrorInvalidConfiguration, "2048 threads");
  expect(run(32, 64 << 10, nothing) == cudaErrorInvalidConfiguration, "64 KiB not asked for");
  expect(run(64, 0, nothing) == cudaSuccess, "a launch after failures");

  expect_products();
  expect_graphs(static_cast<int*>(sum));
  expect_disturbed_captures(static_cast<int*>(sum));
  expect_protection(static_cast<int*>(sum));

  expect(cudaMemcpy(&found, &found, 4, cudaMemcpyHostToDevice) != cudaSuccess, "host for device");
  expect(cudaMemcpy(sum, &found, 4, cudaMemcpyDeviceToDevice) != cudaSuccess, "host on the device");
  expect(cudaMemcpy(&found, sum, 65, cudaMemcpyDeviceToHost) != cudaSuccess, "a copy too long");
  expect(cudaFree(sum) == cudaSuccess && cudaFree(sum) != cudaSuccess, "a second cudaFree");
  return failed ? 1 : 0;
}
