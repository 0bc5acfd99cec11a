// What this machine can do at most, measured on N threads at once: 8-bit multiply-adds (vpdpbusd on
// registers alone), bytes read in order from memory, and cache lines read at random, in runs of one
// to eight neighbours, out of 2 MB pages and out of 4 KB pages. Prints one JSON object.
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
constexpr int kSums = 24;  // enough to hide the latency

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A chain of members, not an array, and a statement that pins each: else they go through memory.
template <int kCount>
struct Sums {
  Sums<kCount - 1> before;
  __m512i sum = _mm512_setzero_si512();

  inline __attribute__((always_inline)) void add(__m512i a, __m512i b) {
    before.add(a, b);
    sum = _mm512_dpbusd_epi32(sum, a, b);
    __asm__ volatile("" : "+v"(sum));
  }
};

template <>
struct Sums<0> {
  void add(__m512i, __m512i) {}
};

int64_t multiply() {
  Sums<kSums> sums;
  const __m512i a = _mm512_set1_epi8(3);
  const __m512i b = _mm512_set1_epi8(1);
  constexpr int kRounds = 1000;
  for (int round = 0; round < kRounds; ++round) {
    sums.add(a, b);
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

constexpr int64_t kRowBytes = 512;
constexpr int64_t kRandomBytes = int64_t{1} << 30;
constexpr int64_t kRandomRows = int64_t{1} << 20;

// Reads `lines` lines of random rows: addresses and prefetches of a block first, then its data.
template <int kLines>
int64_t read_random(const uint8_t* buffer, uint64_t& state) {
  constexpr int64_t kBlock = 384 / kLines;
  const uint8_t* rows[kBlock];
  __m512i sum = _mm512_setzero_si512();
  for (int64_t done = 0; done < kRandomRows; done += kBlock) {
    for (const uint8_t*& row : rows) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      row = buffer + static_cast<int64_t>(state >> 33) % (kRandomBytes / kRowBytes) * kRowBytes;
      for (int line = 0; line < kLines; ++line) __builtin_prefetch(row + line * 64);
    }
    for (const uint8_t* row : rows) {
      for (int line = 0; line < kLines; ++line) {
        sum = _mm512_xor_si512(sum, _mm512_load_si512(row + line * 64));
      }
    }
  }
  __asm__ volatile("" : "+v"(sum));
  return (kRandomRows + kBlock - 1) / kBlock * kBlock * kLines;
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

uint8_t* make_buffer(int64_t bytes, int advice) {
  void* memory = std::aligned_alloc(size_t{2} << 20, static_cast<size_t>(bytes));
  if (memory == nullptr) {
    std::fprintf(stderr, "limits: cannot allocate %lld bytes\n", static_cast<long long>(bytes));
    std::exit(1);
  }
  madvise(memory, static_cast<size_t>(bytes), advice);
  auto* values = static_cast<uint8_t*>(memory);
  for (int64_t i = 0; i < bytes; i += 64) values[i] = static_cast<uint8_t>(i >> 6);
  return values;
}

void print_random(const char* name, int threads, int advice) {
  uint8_t* const buffer = make_buffer(kRandomBytes, advice);
  std::vector<uint64_t> states;
  for (int t = 0; t < threads; ++t) states.push_back(static_cast<uint64_t>(t) + 1);
  const auto run = [&](auto read) {
    return rate(threads, [&](int t) { return read(buffer, states[static_cast<size_t>(t)]); });
  };
  std::printf(", \"%s\": {\"1\": %.4g, \"2\": %.4g, \"4\": %.4g, \"8\": %.4g}", name,
              run(read_random<1>), run(read_random<2>), run(read_random<4>), run(read_random<8>));
  std::free(buffer);
}

}  // namespace

int main(int argc, char** argv) {
  if (!__builtin_cpu_supports("avx512vnni")) {
    std::fprintf(stderr, "limits: expected a CPU with AVX-512 VNNI\n");
    return 1;
  }
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  std::vector<uint8_t*> buffers;
  for (int t = 0; t < threads; ++t) buffers.push_back(make_buffer(kBufferBytes, MADV_HUGEPAGE));
  const double macs = rate(threads, [](int) { return multiply(); });
  const double bytes = rate(threads, [&](int t) { return read(buffers[static_cast<size_t>(t)]); });
  for (uint8_t* buffer : buffers) std::free(buffer);
  std::printf("{\"int8_macs_per_s\": %.4g, \"read_bytes_per_s\": %.4g", macs, bytes);
  print_random("random_lines_per_s", threads, MADV_HUGEPAGE);
  print_random("random_lines_small_pages_per_s", threads, MADV_NOHUGEPAGE);
  std::printf("}\n");
  return 0;
}
