#include <algorithm>
#include <chrono>
#include <cstdint>
#include <iterator>
#include <memory>
#include <thread>
#include <utility>

#include "cuda/launch.h"
#include "cuda/relaxed_capture.h"
#include "ops/embedding_bag_cuda_kernel.h"
#include "ops/row_cache.h"
#include "recengine/cuda.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kWorkBytes = 64 << 10;
constexpr int kMaxSampleBits = 16;
constexpr RowSample kNoSample{kEmptyEntry, 0};
constexpr uint32_t kNoSamples = UINT32_MAX;  // as a mask
constexpr std::chrono::microseconds kPoll{20};

// The caches of a launch's columns.
struct CacheStates {
  RowCacheState* of[kMaxColumns];
};

// Counts the call before it looks again at what is current: who changes that and then finds no
// reader knows that none will come.
__device__ RowCacheView enter(RowCacheState& state) {
  int map_idx = atomicAdd(&state.current, 0);
  for (;;) {
    atomicAdd(&state.readers[map_idx], 1);
    __threadfence();
    const int current = atomicAdd(&state.current, 0);
    if (current == map_idx) break;
    atomicAdd(&state.readers[map_idx], -1);
    map_idx = current;
  }
  RowCacheView view = state.views[map_idx];
  view.seed = atomicAdd(&state.calls, 1);
  if (atomicAdd(&state.num_samples, 0) >= kMaxSamples) view.sample_mask = kNoSamples;
  return view;
}

// A thread for a column.
__global__ void enter_caches(const CacheStates states, RowCacheView* views) {
  RowCacheState* const state = states.of[threadIdx.x];
  views[threadIdx.x] = state == nullptr ? RowCacheView{} : enter(*state);
}

__global__ void leave_caches(const RowCacheView* views) {
  const RowCacheView view = views[threadIdx.x];
  if (view.map == nullptr) return;
  __threadfence();
  atomicAdd(&view.state->readers[view.map_idx], -1);
}

__global__ void publish_map(RowCacheState* state, int map_idx) {
  __threadfence();
  atomicExch(&state->current, map_idx);
}

__global__ void set_sample_mask(RowCacheState* state, uint32_t mask) {
  for (RowCacheView& view : state->views) view.sample_mask = mask;
}

__global__ void __launch_bounds__(kThreads)
    change_map(RowMapEntry* map, const RowMap::Change* changes, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) map[changes[i].at] = changes[i].entry;
}

// A warp for a row.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    copy_to_slots(const char* rows, char* slots, int64_t row_bytes, const RowMapEntry* chosen,
                  int64_t count) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / cuda::kWarpLanes;
  if (i >= count) return;
  const auto* const from = reinterpret_cast<const T*>(rows + chosen[i].row * row_bytes);
  auto* const to = reinterpret_cast<T*>(slots + chosen[i].slot * row_bytes);
  const int64_t parts = row_bytes / static_cast<int64_t>(sizeof(T));
  for (int64_t p = threadIdx.x % cuda::kWarpLanes; p < parts; p += cuda::kWarpLanes) {
    to[p] = from[p];
  }
}

dim3 blocks_for(int64_t threads) {
  return dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads));
}

// Passes the items on to run(items on the device, count), as many at once as `work` holds.
template <typename T, typename Run>
void upload(const std::vector<T>& items, void* work, int device, CudaStream stream, Run run) {
  const int64_t most = kWorkBytes / static_cast<int64_t>(sizeof(T));
  const auto size = static_cast<int64_t>(items.size());
  for (int64_t begin = 0; begin < size; begin += most) {
    const int64_t count = std::min(most, size - begin);
    copy_to_device(work, items.data() + begin, count * static_cast<int64_t>(sizeof(T)), device,
                   stream);
    run(static_cast<const T*>(work), count);
  }
}

int64_t map_bytes(int64_t capacity) {
  return 2 * capacity * static_cast<int64_t>(sizeof(RowMapEntry));
}

}  // namespace

int64_t RowCache::slot_bytes(int64_t row_bytes) { return row_bytes + 2 * map_bytes(1); }

int64_t RowCache::device_bytes(uint32_t capacity, int64_t row_bytes) {
  return capacity * slot_bytes(row_bytes) + int64_t{sizeof(RowCacheState)} + kWorkBytes;
}

RowCache::RowCache(const EmbeddingTable& table, uint32_t capacity, int device)
    : host_rows_(static_cast<const char*>(table.data)),
      row_bytes_(table.row_bytes),
      device_(device),
      hot_(capacity),
      stream_(device),
      maps_(allocate_resident(2 * map_bytes(capacity), device)),
      slots_(allocate_resident(capacity * row_bytes_, device)),
      work_(allocate_resident(kWorkBytes, device)),
      state_(allocate_resident(sizeof(RowCacheState), device)) {
  stats_.held = capacity;
  const auto initial = std::make_unique<RowCacheState>();
  const auto* const slots = static_cast<const char*>(slots_.get());
  for (int32_t i = 0; i < 2; ++i)
    initial->views[i] = {map(i), slots, state(), 2 * capacity, i, 0, 0};
  std::fill(std::begin(initial->samples), std::end(initial->samples), kNoSample);
  copy_to_device(state_.get(), initial.get(), sizeof *initial, device, stream());
  copy_to_device(map(0), hot_.map().entries().data(), map_bytes(capacity), device, stream());
  copy_to_device(slots_.get(), host_rows_, capacity * row_bytes_, device, stream());
}

RowCache::~RowCache() {
  try {
    const cuda::RelaxedCapture relaxed;
    synchronize(device_, stream());  // what was published last
  } catch (const DeviceError&) {
    // The device has failed, or the process ends.
  }
}

RowMapEntry* RowCache::map(int index) const {
  return static_cast<RowMapEntry*>(maps_.get()) + index * int64_t{2} * hot_.capacity();
}

int64_t RowCache::refresh() {
  const std::lock_guard<std::mutex> lock(mutex_);
  const cuda::DeviceGuard guard(device_);
  const cuda::RelaxedCapture relaxed;
  std::vector<uint32_t> rows;
  stats_.samples = stats_.sampled_hits = 0;
  for (const RowSample& sample : take_samples()) {
    rows.push_back(sample.row);
    ++stats_.samples;
    stats_.sampled_hits += sample.hit == 1;
  }
  adapt_sampling(rows.size());
  ++stats_.refreshes;
  hot_.count(rows);
  return replace(hot_.choose(std::move(rows)));
}

int64_t RowCache::warm(Span<const uint32_t> rows) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const cuda::DeviceGuard guard(device_);
  const cuda::RelaxedCapture relaxed;
  take_samples();  // of the time before
  hot_.start_with(rows);
  return replace(hot_.choose({rows.begin(), rows.end()}));
}

CacheStats RowCache::stats() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return stats_;
}

// What a call adds meanwhile is lost, or counted next time.
std::vector<RowSample> RowCache::take_samples() {
  uint32_t count = 0;
  copy_to_host(&count, &state()->num_samples, sizeof count, device_, stream());
  std::vector<RowSample> samples(std::min(count, kMaxSamples));
  const auto bytes = static_cast<int64_t>(samples.size() * sizeof(RowSample));
  copy_to_host(samples.data(), state()->samples, bytes, device_, stream());
  RECENGINE_CUDA_CHECK(
      cudaMemsetAsync(state()->samples, 0xff, static_cast<size_t>(bytes), stream()));
  RECENGINE_CUDA_CHECK(cudaMemsetAsync(&state()->num_samples, 0, sizeof count, stream()));
  samples.erase(std::remove_if(samples.begin(), samples.end(),
                               [](const RowSample& sample) { return sample.row == kEmptyEntry; }),
                samples.end());
  return samples;
}

// So that samples are spread over about the whole time from one refresh to the next.
void RowCache::adapt_sampling(size_t samples) {
  const int before = sample_bits_;
  if (samples == kMaxSamples && sample_bits_ < kMaxSampleBits) ++sample_bits_;
  if (samples < kMaxSamples / 4 && sample_bits_ > 0) --sample_bits_;
  if (sample_bits_ == before) return;
  const uint32_t mask = sample_bits_ == 0 ? 0 : ~0u << (32 - sample_bits_);
  cuda::launch(set_sample_mask, dim3(1), dim3(1), 0, stream(), state(), mask);
}

int64_t RowCache::replace(const std::vector<RowMapEntry>& chosen) {
  if (chosen.empty()) return 0;
  wait_for_readers(1);
  RECENGINE_CUDA_CHECK(cudaMemcpyAsync(map(1), map(0),
                                       static_cast<size_t>(map_bytes(hot_.capacity())),
                                       cudaMemcpyDeviceToDevice, stream()));
  hot_.release(chosen);
  const std::vector<RowMap::Change> released = hot_.map().take_changes();
  change(1, released);
  publish(1);
  wait_for_readers(0);
  copy_rows(chosen);
  hot_.hold(chosen);
  change(0, released);
  change(0, hot_.map().take_changes());
  publish(0);
  return static_cast<int64_t>(chosen.size());
}

void RowCache::publish(int map_idx) {
  cuda::launch(publish_map, dim3(1), dim3(1), 0, stream(), state(), map_idx);
}

void RowCache::wait_for_readers(int map_idx) const {
  for (;;) {
    int32_t readers = 0;
    copy_to_host(&readers, &state()->readers[map_idx], sizeof readers, device_, stream());
    if (readers == 0) return;
    std::this_thread::sleep_for(kPoll);
  }
}

void RowCache::change(int map_idx, const std::vector<RowMap::Change>& changes) {
  upload(changes, work_.get(), device_, stream(),
         [&](const RowMap::Change* uploaded, int64_t count) {
           cuda::launch(change_map, blocks_for(count), dim3(kThreads), 0, stream(), map(map_idx),
                        uploaded, count);
         });
}

void RowCache::copy_rows(const std::vector<RowMapEntry>& chosen) {
  const auto copy = row_bytes_ % static_cast<int64_t>(sizeof(uint4)) == 0 ? copy_to_slots<uint4>
                                                                          : copy_to_slots<char>;
  upload(chosen, work_.get(), device_, stream(), [&](const RowMapEntry* uploaded, int64_t count) {
    cuda::launch(copy, blocks_for(count * cuda::kWarpLanes), dim3(kThreads), 0, stream(),
                 host_rows_, static_cast<char*>(slots_.get()), row_bytes_, uploaded, count);
  });
}

CacheReaders::CacheReaders(const CudaContext& context, const std::vector<RowCacheState*>& states)
    : views_(static_cast<int64_t>(states.size()), context),
      stream_(static_cast<cudaStream_t>(context.stream)) {
  CacheStates given{};
  std::copy(states.begin(), states.end(), given.of);
  cuda::launch(enter_caches, dim3(1), dim3(static_cast<unsigned>(states.size())), 0, stream_, given,
               views_.data());
}

CacheReaders::~CacheReaders() {
  try {
    cuda::launch(leave_caches, dim3(1), dim3(static_cast<unsigned>(views_.size())), 0, stream_,
                 views_.data());
  } catch (const DeviceError&) {
    // The device has failed: who waits for this call will hear of it, too.
  }
}

}  // namespace recengine
