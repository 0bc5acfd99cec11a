#include "wgmma_emulation.h"

#include <cstring>
#include <map>
#include <vector>

namespace cuda_emulation {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kWarpgroup = 128;
constexpr uint32_t kFirstAddress = 1024;  // of a block's own shared memory
constexpr int kStepBytes = 32;            // of a row or a column
constexpr uint64_t kAddressBits = (1 << 14) - 1;
constexpr int32_t kInFlight = 0x5a5a5a5a;  // what sums seem to be until they are waited for

struct Issued {
  Wgmma product;
  uint4 rows;  // when it was issued
};

struct Thread {
  std::vector<Issued> issued;
  size_t committed = 0;  // of these
  std::map<int32_t (*)[4], std::vector<int32_t>> sums;
  bool fenced = false;
  int64_t products = 0;
};

Thread threads[kMaxThreads];
std::vector<char> async_view;  // of shared memory

Thread& self() { return threads[threadIdx.x]; }

bool same(const uint4& a, const uint4& b) { return std::memcmp(&a, &b, sizeof a) == 0; }

// 16 bytes of a column: without a swizzle, rows of core matrices of 8 columns.
const char* half_column(uint64_t descriptor, int column, int half) {
  const uint64_t start = (descriptor & kAddressBits) << 4;
  const uint64_t leading = (descriptor >> 16 & kAddressBits) << 4;  // to the columns' other halves
  const uint64_t stride = (descriptor >> 32 & kAddressBits) << 4;   // to the next 8 columns
  if ((descriptor & ~(kAddressBits | kAddressBits << 16 | kAddressBits << 32)) != 0) {
    fail("a wgmma descriptor with a swizzle, or with bits that have no meaning");
  }
  const uint64_t address = start + static_cast<uint64_t>(column / 8) * stride +
                           static_cast<uint64_t>(half) * leading +
                           static_cast<uint64_t>(column % 8) * 16;
  if (address < kFirstAddress || address + 16 > kFirstAddress + async_view.size()) {
    fail("a wgmma descriptor of what is not in shared memory");
  }
  return async_view.data() + (address - kFirstAddress);
}

// Row lane / 4 of the warp's 16 and the one 8 further, from the four lanes that hold them.
void gather_rows(size_t product, int8_t (&rows)[2][kStepBytes]) {
  const Thread* const quad = threads + threadIdx.x / 4 * 4;
  for (int part = 0; part < 4; ++part) {
    if (quad[part].issued.size() <= product ||
        quad[part].issued[product].product.columns != self().issued[product].product.columns) {
      fail("lanes of a warp whose wgmmas differ");
    }
    const uint4& held = quad[part].issued[product].rows;
    std::memcpy(rows[0] + 4 * part, &held.x, 4);
    std::memcpy(rows[1] + 4 * part, &held.y, 4);
    std::memcpy(rows[0] + 16 + 4 * part, &held.z, 4);
    std::memcpy(rows[1] + 16 + 4 * part, &held.w, 4);
  }
}

void multiply(size_t index) {
  const Wgmma& product = self().issued[index].product;
  int8_t rows[2][kStepBytes];
  gather_rows(index, rows);
  std::vector<int32_t>& sums = self().sums[product.sums];
  for (int i = 0; i < product.tiles * 4; ++i) {
    const int column = i / 4 * 8 + 2 * static_cast<int>(threadIdx.x % 4) + i % 2;
    int8_t bytes[kStepBytes];
    std::memcpy(bytes, half_column(product.columns, column, 0), 16);
    std::memcpy(bytes + 16, half_column(product.columns, column, 1), 16);
    int32_t sum = product.accumulate ? sums[static_cast<size_t>(i)] : 0;
    for (int d = 0; d < kStepBytes; ++d) sum += rows[i / 2 % 2][d] * bytes[d];
    sums[static_cast<size_t>(i)] = sum;
  }
}

}  // namespace

uint32_t shared_address(const void* shared) {
  const auto at = static_cast<const char*>(shared) - static_cast<const char*>(dynamic_shared());
  if (at < 0 || at >= static_cast<std::ptrdiff_t>(async_view.size())) {
    fail("the address of what is not in dynamic shared memory");
  }
  return kFirstAddress + static_cast<uint32_t>(at);
}

void fence_async_proxy() { std::memcpy(async_view.data(), dynamic_shared(), async_view.size()); }

void wgmma_fence() { self().fenced = true; }

void wgmma(const Wgmma& product) {
  Thread& thread = self();
  if (blockDim.x % kWarpgroup != 0) fail("a wgmma without a whole warpgroup");
  if (!thread.fenced) fail("a wgmma without a wgmma_fence after the last wait");
  int32_t* const begin = product.sums[0];
  int32_t* const end = begin + product.tiles * 4;
  if (thread.sums.count(product.sums) == 0) {
    thread.sums[product.sums].assign(begin, end);
    std::fill(begin, end, kInFlight);
  }
  thread.issued.push_back({product, *product.rows});
  ++thread.products;
}

void wgmma_commit() { self().committed = self().issued.size(); }

void wgmma_wait() {
  Thread& thread = self();
  if (thread.committed != thread.issued.size()) fail("a wait for a wgmma that is not committed");
  for (const Issued& issued : thread.issued) {
    if (!same(issued.rows, *issued.product.rows)) fail("rows of a wgmma written before the wait");
  }
  __syncwarp();
  for (size_t i = 0; i < thread.issued.size(); ++i) multiply(i);
  __syncwarp();  // before others lose what they read
  for (const auto& [sums, values] : thread.sums) {
    for (size_t i = 0; i < values.size(); ++i) {
      if (sums[i / 4][i % 4] != kInFlight) fail("sums of a wgmma written before the wait");
      sums[i / 4][i % 4] = values[i];
    }
  }
  thread.issued.clear();
  thread.sums.clear();
  thread.committed = 0;
  thread.fenced = false;
}

void begin_wgmma_block(int threads_of_block) {
  for (int t = 0; t < threads_of_block; ++t) threads[t] = {};
  async_view.assign(dynamic_shared_bytes(), static_cast<char>(0xcd));
}

void end_wgmma_thread() {
  if (!self().issued.empty()) fail("a wgmma that nothing waited for");
}

const char* end_wgmma_block(int threads_of_block) {
  for (int t = 0; t < threads_of_block; ++t) {
    if (threads[t].products != threads[t / kWarpgroup * kWarpgroup].products) {
      return "threads of a warpgroup whose wgmmas differ";
    }
  }
  return nullptr;
}

}  // namespace cuda_emulation
