// What this machine can do at most, measured on 1 .. N threads at once: 8-bit multiply-adds
// (vpdpbusd on registers alone) and bytes read in order from memory. Prints one JSON object.
#include <immintrin.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr double kSeconds = 0.5;
constexpr int kSums = 12;  // enough to hide the latency

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int64_t multiply() {
  __m512i sums[kSums];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  __m512i a = _mm512_set1_epi8(3);
  const __m512i b = _mm512_set1_epi8(1);
  constexpr int kRounds = 1000;
  for (int round = 0; round < kRounds; ++round) {
    for (__m512i& sum : sums) {
      sum = _mm512_dpbusd_epi32(sum, a, b);
      __asm__ volatile("" : "+v"(sum));
    }
  }
  return int64_t{kRounds} * kSums * 64;
}

constexpr int64_t kBufferBytes = int64_t{256} << 20;

int64_t read(const uint8_t* buffer) {
  constexpr int64_t kAhead = 8192;
  __m512i sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < kBufferBytes; i += 256) {
    for (int64_t line = 0; line < 256; line += 64) {
      __builtin_prefetch(buffer + i + kAhead + line);
      sum = _mm512_xor_si512(sum, _mm512_load_si512(buffer + i + line));
    }
  }
  __asm__ volatile("" : "+v"(sum));
  return kBufferBytes;
}

// Units per second of all threads together; `work` does some and says how many.
template <typename Work>
double rate(int threads, const Work& work) {
  std::vector<double> rates(static_cast<size_t>(threads));
  std::vector<std::thread> workers;
  for (int t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      for (const double end = now() + kSeconds / 4; now() < end;) work(t);
      double units = 0;
      const double start = now();
      while (now() < start + kSeconds) units += static_cast<double>(work(t));
      rates[static_cast<size_t>(t)] = units / (now() - start);
    });
  }
  double total = 0;
  for (std::thread& worker : workers) worker.join();
  for (const double value : rates) total += value;
  return total;
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  std::vector<uint8_t*> buffers;
  for (int t = 0; t < threads; ++t) {
    void* memory = std::aligned_alloc(size_t{2} << 20, static_cast<size_t>(kBufferBytes));
    if (memory == nullptr) return 1;
    madvise(memory, static_cast<size_t>(kBufferBytes), MADV_HUGEPAGE);
    auto* bytes = static_cast<uint8_t*>(memory);
    for (int64_t i = 0; i < kBufferBytes; i += 64) bytes[i] = static_cast<uint8_t>(i >> 6);
    buffers.push_back(bytes);
  }
  const double macs = rate(threads, [](int) { return multiply(); });
  const double bytes = rate(threads, [&](int t) { return read(buffers[static_cast<size_t>(t)]); });
  std::printf("{\"int8_macs_per_s\": %.4g, \"read_bytes_per_s\": %.4g}\n", macs, bytes);
  return 0;
}
