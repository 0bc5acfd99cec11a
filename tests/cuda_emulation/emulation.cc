// The fibers that threads of a block are; see cuda_runtime.h.

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "device_memory.h"
#include "wgmma_emulation.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

// Keeps what a call must keep on the stack, and its pointer in *from; goes on where `to` was kept.
// setjmp and longjmp would do, but clear the shadow of a whole stack under AddressSanitizer, at
// each of the switches that kernels consist of here.
extern "C" void recengine_switch_stack(void** from, void* to);
asm(R"(
.pushsection .text
.type recengine_switch_stack, @function
recengine_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size recengine_switch_stack, . - recengine_switch_stack
.popsection
)");

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace cuda_emulation {
namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr int kMaxThreads = 1024;
constexpr int kSavedRegisters = 6;

std::mutex launch_mutex;
thread_local std::string failure;  // of the last launch that failed

struct Fiber {
  void* stack_pointer = nullptr;  // while it does not run
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool begun = false;
  bool done = false;
  bool waiting = false;
  Wait kind{};
  unsigned mask = 0;
  uint64_t value = 0;
  int source = 0;
  uint64_t result = 0;
};

// Switches between the stack of the launch and those of the fibers.
struct Switch {
  void* launch_stack_pointer = nullptr;  // while a fiber runs
  std::vector<std::unique_ptr<Fiber>> fibers;
  const std::function<void()>* thread = nullptr;
  int current = 0;
  const void* launch_stack = nullptr;
  size_t launch_stack_bytes = 0;
};

struct Block {
  int threads = 0;
  int live = 0;        // threads that have not returned
  int at_barrier = 0;  // of these
  const char* failed = nullptr;
  std::vector<char> shared;
};

Switch fibers;
Block block;
std::map<const void*, int> opted_in_shared;  // by kernel

Fiber& self() { return *fibers.fibers[static_cast<size_t>(fibers.current)]; }

// AddressSanitizer wants to know which stack it is on.
void before_switch([[maybe_unused]] const void* stack, [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(nullptr, stack, bytes);
#endif
}
void arrive_in_launch() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

// Launches come from any thread, each with a stack of its own.
void arrive_in_fiber() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &fibers.launch_stack, &fibers.launch_stack_bytes);
#endif
}

void leave_fiber() {
  before_switch(fibers.launch_stack, fibers.launch_stack_bytes);
  recengine_switch_stack(&self().stack_pointer, fibers.launch_stack_pointer);
  arrive_in_fiber();
}

// Threads that have returned do not count.
void release_block() {
  if (block.at_barrier < block.live) return;
  block.at_barrier = 0;
  for (int t = 0; t < block.threads; ++t) {
    fibers.fibers[static_cast<size_t>(t)]->waiting = false;
  }
}

void release_warp(int first, unsigned mask, Wait kind) {
  uint64_t ballot = 0;
  for (int i = 0; i < warpSize; ++i) {
    if ((mask >> i & 1) == 0) continue;
    if (first + i >= block.threads) return;  // never comes; reported when nothing else can run
    const Fiber& fiber = *fibers.fibers[static_cast<size_t>(first + i)];
    if (fiber.done || !fiber.waiting || fiber.kind != kind || fiber.mask != mask) return;
    ballot |= static_cast<uint64_t>(fiber.value != 0) << i;
  }
  for (int i = 0; i < warpSize; ++i) {
    if ((mask >> i & 1) == 0) continue;
    Fiber& fiber = *fibers.fibers[static_cast<size_t>(first + i)];
    if ((mask >> fiber.source & 1) == 0) fail("a shuffle from a lane that is not in its mask");
    fiber.result = kind == Wait::kBallot
                       ? ballot
                       : fibers.fibers[static_cast<size_t>(first + fiber.source)]->value;
    fiber.waiting = false;
  }
}

uint64_t wait(Wait kind, unsigned mask, uint64_t value, int source) {
  Fiber& fiber = self();
  fiber.kind = kind;
  fiber.mask = mask;
  fiber.value = value;
  fiber.source = source;
  fiber.waiting = true;
  if (kind == Wait::kSyncThreads) {
    ++block.at_barrier;
    release_block();
  } else {
    release_warp(fibers.current & ~(warpSize - 1), mask, kind);
  }
  while (fiber.waiting) leave_fiber();
  return fiber.result;
}

// A fiber runs one thread of one block after the other.
void fiber_main() {
  arrive_in_fiber();
  for (;;) {
    (*fibers.thread)();
    end_wgmma_thread();
    self().done = true;
    --block.live;
    release_block();
    leave_fiber();
  }
}

// As if fiber_main had been called, and had switched at once.
void begin(Fiber& fiber) {
  void** top = reinterpret_cast<void**>(fiber.stack.get() + kStackBytes);
  *--top = nullptr;  // where it would return to
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
  fiber.begun = true;
}

void enter_fiber(int t) {
  Fiber& fiber = *fibers.fibers[static_cast<size_t>(t)];
  fibers.current = t;
  const auto in_row = static_cast<unsigned>(t) / blockDim.x;
  threadIdx = {static_cast<unsigned>(t) % blockDim.x, in_row % blockDim.y, in_row / blockDim.y};
  if (!fiber.begun) begin(fiber);
  before_switch(fiber.stack.get(), kStackBytes);
  recengine_switch_stack(&fibers.launch_stack_pointer, fiber.stack_pointer);
  arrive_in_launch();
}

// Which thread waits for what, of those that still do.
std::string describe_wait() {
  static const char* const names[] = {"__syncthreads", "__syncwarp", "a shuffle", "a vote"};
  for (int t = 0; t < block.threads; ++t) {
    const Fiber& fiber = *fibers.fibers[static_cast<size_t>(t)];
    if (fiber.done) continue;
    char text[160];
    std::snprintf(text, sizeof text,
                  "thread %d of block (%u, %u, %u) waits for ever at %s, mask %08x", t, blockIdx.x,
                  blockIdx.y, blockIdx.z, names[static_cast<int>(fiber.kind)], fiber.mask);
    return text;
  }
  return "";
}

// Runs the threads of blockIdx until all have returned; false when they cannot.
bool run_block(bool backwards) {
  std::fill(block.shared.begin(), block.shared.end(), static_cast<char>(0xcd));
  begin_wgmma_block(block.threads);
  block.live = block.threads;
  block.at_barrier = 0;
  for (int t = 0; t < block.threads; ++t) {
    Fiber& fiber = *fibers.fibers[static_cast<size_t>(t)];
    fiber.done = fiber.waiting = false;
  }
  for (int left = block.threads; left > 0;) {
    bool moved = false;
    for (int i = 0; i < block.threads; ++i) {
      const int t = backwards ? block.threads - 1 - i : i;
      const Fiber& fiber = *fibers.fibers[static_cast<size_t>(t)];
      if (fiber.done || fiber.waiting) continue;
      enter_fiber(t);
      moved = true;
      left -= fiber.done ? 1 : 0;
      if (block.failed != nullptr) return false;
    }
    if (!moved) return false;
  }
  block.failed = end_wgmma_block(block.threads);
  return block.failed == nullptr;
}

bool run_blocks(const cudaLaunchConfig_t& config) {
  static bool backwards = false;  // what depends on the order of threads shows in every other block
  for (unsigned z = 0; z < config.gridDim.z; ++z) {
    for (unsigned y = 0; y < config.gridDim.y; ++y) {
      for (unsigned x = 0; x < config.gridDim.x; ++x) {
        blockIdx = {x, y, z};
        backwards = !backwards;
        if (!run_block(backwards)) return false;
      }
    }
  }
  return true;
}

// Adds a kernel that this process launches for the first time, as its place in its library, to the
// file that CUDA_EMULATED_KERNELS names.
void list_kernel(const void* kernel) {
  static const char* const path = std::getenv("CUDA_EMULATED_KERNELS");
  static std::set<const void*> listed;
  Dl_info library;
  if (path == nullptr || !listed.insert(kernel).second || dladdr(kernel, &library) == 0) return;
  char line[32];
  std::snprintf(line, sizeof line, "%016tx\n",
                static_cast<const char*>(kernel) - static_cast<char*>(library.dli_fbase));
  std::ofstream(path, std::ios::app) << line;  // an address as nm writes it
}

bool valid(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3& grid = config.gridDim;
  const dim3& threads = config.blockDim;
  const auto opted = opted_in_shared.find(kernel);
  const int shared = opted == opted_in_shared.end() ? kSharedBytes : opted->second;
  return grid.x > 0 && grid.x <= 0x7fffffffu && grid.y > 0 && grid.y <= 65535 && grid.z > 0 &&
         grid.z <= 65535 && threads.x > 0 && threads.y > 0 && threads.z > 0 &&
         uint64_t{threads.x} * threads.y * threads.z <= kMaxThreads &&
         config.dynamicSmemBytes <= static_cast<size_t>(shared);
}

}  // namespace

const char* launch_failure() { return failure.c_str(); }

int lane() { return fibers.current % warpSize; }
void* dynamic_shared() { return block.shared.data(); }
size_t dynamic_shared_bytes() { return block.shared.size(); }

void fail(const char* what) {
  block.failed = what;
  for (;;) leave_fiber();
}

void wait_for_block() { wait(Wait::kSyncThreads, 0, 0, 0); }

uint64_t wait_for_warp(Wait kind, unsigned mask, uint64_t value, int source) {
  if ((mask >> lane() & 1) == 0) fail("a lane that is not in the mask of its own warp primitive");
  return wait(kind, mask, value, source);
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > kOptInSharedBytes) return cudaErrorInvalidValue;
  opted_in_shared[kernel] = value;
  return cudaSuccess;
}

cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel,
                const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  const DeviceAccess access;
  if (!valid(config, kernel)) return cudaErrorInvalidConfiguration;
  list_kernel(kernel);
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  block.threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  block.failed = nullptr;
  block.shared.assign(config.dynamicSmemBytes, 0);
  fibers.thread = &thread;
  while (fibers.fibers.size() < static_cast<size_t>(block.threads)) {
    fibers.fibers.push_back(std::make_unique<Fiber>());
  }
  if (run_blocks(config)) return cudaSuccess;
  failure = block.failed != nullptr ? block.failed : describe_wait();
  fibers.fibers.clear();  // they are amid a thread
  return cudaErrorLaunchFailure;
}

}  // namespace cuda_emulation
