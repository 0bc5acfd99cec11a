// What this machine can do at most, measured on N threads at once: 8-bit multiply-adds on registers
// alone (vpdpbusd, or the instructions of AVX2 that take its place; AMX's tiles where there are),
// bytes read in order, again and again, out of as many as the last arguments say (what fits into
// caches is read faster), and cache lines read at random, in runs of one to eight neighbours, out
// of 2 MB pages and out of 4 KB pages. Arguments: N, seconds of each measurement, bytes. Prints one
// JSON object.
#include <immintrin.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

struct Plan {
  int threads;
  double seconds;  // of each measurement, after a quarter as long to warm up
};

constexpr int64_t kLine = 64;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

#ifdef __AVX512VNNI__

using Vector = __m512i;
constexpr int kSums = 24;    // enough to hide the latency
constexpr int kChained = 1;  // products of vectors that add() makes

Vector load(const uint8_t* at) { return _mm512_load_si512(at); }
Vector exclusive_or(Vector a, Vector b) { return _mm512_xor_si512(a, b); }
Vector bytes_of(char byte) { return _mm512_set1_epi8(byte); }

inline __attribute__((always_inline)) Vector multiply_add(Vector sum, Vector a, Vector b) {
  return _mm512_dpbusd_epi32(sum, a, b);
}

#else

using Vector = __m256i;
constexpr int kSums = 8;
constexpr int kChained = 4;

Vector load(const uint8_t* at) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(at)); }
Vector exclusive_or(Vector a, Vector b) { return _mm256_xor_si256(a, b); }
Vector bytes_of(char byte) { return _mm256_set1_epi8(byte); }

// As many products as 16 bits hold the sum of, which are then widened.
inline __attribute__((always_inline)) Vector multiply_add(Vector sum, Vector a, Vector b) {
  __asm__ volatile("" : "+v"(a));  // else the product is made once for all sums
  Vector words = _mm256_maddubs_epi16(a, b);
  for (int i = 1; i < kChained; ++i) {
    __asm__ volatile("" : "+v"(a));
    words = _mm256_add_epi16(words, _mm256_maddubs_epi16(a, b));
  }
  return _mm256_add_epi32(sum, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
}

#endif

constexpr int64_t kVectorBytes = sizeof(Vector);

// A chain of members, not an array, and a statement that pins each: else they go through memory.
template <int kCount>
struct Sums {
  Sums<kCount - 1> before;
  Vector sum = bytes_of(0);

  inline __attribute__((always_inline)) void add(Vector a, Vector b) {
    before.add(a, b);
    sum = multiply_add(sum, a, b);
    __asm__ volatile("" : "+v"(sum));
  }
};

template <>
struct Sums<0> {
  void add(Vector, Vector) {}
};

int64_t multiply() {
  Sums<kSums> sums;
  const Vector a = bytes_of(3);
  const Vector b = bytes_of(1);
  constexpr int kRounds = 1000;
  for (int round = 0; round < kRounds; ++round) {
    sums.add(a, b);
  }
  return int64_t{kRounds} * kSums * kChained * kVectorBytes;
}

#ifdef __AMX_INT8__

// Four sums of tiles that are full: 16 times 16 products over 64 bytes.
int64_t multiply_tiles() {
  struct alignas(64) {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
  } shapes;
  __asm__("" : : "r"(&shapes) : "memory");  // GCC takes the next one to read less than it does
  _tile_loadconfig(&shapes);
  constexpr int kRounds = 1000;
  for (int round = 0; round < kRounds; ++round) {
    _tile_dpbsud(0, 4, 5);
    _tile_dpbsud(1, 4, 5);
    _tile_dpbsud(2, 4, 5);
    _tile_dpbsud(3, 4, 5);
  }
  _tile_release();
  return int64_t{kRounds} * 4 * 16 * 16 * 64;
}

bool may_use_tiles() {  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

#else

int64_t multiply_tiles() { return 0; }
bool may_use_tiles() { return false; }

#endif

// The bytes of a line, each once.
inline __attribute__((always_inline)) Vector read_line(const uint8_t* line, Vector sum) {
  for (int64_t i = 0; i < kLine; i += kVectorBytes) sum = exclusive_or(sum, load(line + i));
  return sum;
}

constexpr int64_t kFewLines = 4 * kLine;

// `bytes` is a multiple of kFewLines.
template <int64_t kAhead>
int64_t read(const uint8_t* buffer, int64_t bytes) {
  Vector sum = bytes_of(0);
  for (int64_t i = 0; i < bytes; i += kFewLines) {
    for (int64_t line = i; line < i + kFewLines; line += kLine) {
      __builtin_prefetch(buffer + line + kAhead);
      sum = read_line(buffer + line, sum);
    }
  }
  __asm__ volatile("" : "+v"(sum));
  return bytes;
}

constexpr int64_t kRowBytes = 512;
constexpr int64_t kRandomBytes = int64_t{1} << 30;
constexpr int64_t kRandomRows = int64_t{1} << 20;

const uint8_t* random_row(const uint8_t* buffer, uint64_t& state) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return buffer + static_cast<int64_t>(state >> 33) % (kRandomBytes / kRowBytes) * kRowBytes;
}

// Reads kLines lines of random rows, each prefetched into the second-level cache 64 rows ahead.
template <int kLines>
int64_t read_random_ahead(const uint8_t* buffer, uint64_t& state) {
  constexpr int64_t kAhead = 64;
  const uint8_t* rows[kAhead];
  for (const uint8_t*& row : rows) row = buffer;
  Vector sum = bytes_of(0);
  for (int64_t i = 0; i < kRandomRows; ++i) {
    const uint8_t* const row = rows[i % kAhead];
    rows[i % kAhead] = random_row(buffer, state);
    for (int line = 0; line < kLines; ++line) {
      __builtin_prefetch(rows[i % kAhead] + line * kLine, 0, 2);
    }
    for (int line = 0; line < kLines; ++line) sum = read_line(row + line * kLine, sum);
  }
  __asm__ volatile("" : "+v"(sum));
  return kRandomRows * kLines;
}

// The same with addresses and prefetches of a block first, then its data.
template <int kLines>
int64_t read_random(const uint8_t* buffer, uint64_t& state) {
  constexpr int64_t kBlock = 384 / kLines;
  const uint8_t* rows[kBlock];
  Vector sum = bytes_of(0);
  for (int64_t done = 0; done < kRandomRows; done += kBlock) {
    for (const uint8_t*& row : rows) {
      row = random_row(buffer, state);
      for (int line = 0; line < kLines; ++line) __builtin_prefetch(row + line * kLine);
    }
    for (const uint8_t* row : rows) {
      for (int line = 0; line < kLines; ++line) {
        sum = read_line(row + line * kLine, sum);
      }
    }
  }
  __asm__ volatile("" : "+v"(sum));
  return (kRandomRows + kBlock - 1) / kBlock * kBlock * kLines;
}

// Units per second of all threads together; `work` does some and says how many.
template <typename Work>
double rate(const Plan& plan, const Work& work) {
  std::vector<double> rates(static_cast<size_t>(plan.threads));
  std::vector<std::thread> workers;
  for (int t = 0; t < plan.threads; ++t) {
    workers.emplace_back([&, t] {
      for (const double end = now() + plan.seconds / 4; now() < end;) work(t);
      double units = 0;
      const double start = now();
      while (now() < start + plan.seconds) units += static_cast<double>(work(t));
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

void print_random(const char* name, const Plan& plan, int advice) {
  uint8_t* const buffer = make_buffer(kRandomBytes, advice);
  std::vector<uint64_t> states;
  for (int t = 0; t < plan.threads; ++t) states.push_back(static_cast<uint64_t>(t) + 1);
  const auto run_one = [&](auto read) {
    return rate(plan, [&](int t) { return read(buffer, states[static_cast<size_t>(t)]); });
  };
  const auto run = [&](auto read, auto read_ahead) {  // as the CPU likes
    return std::max(run_one(read), run_one(read_ahead));
  };
  std::printf(", \"%s\": {\"1\": %.4g, \"2\": %.4g, \"4\": %.4g, \"8\": %.4g}", name,
              run(read_random<1>, read_random_ahead<1>), run(read_random<2>, read_random_ahead<2>),
              run(read_random<4>, read_random_ahead<4>), run(read_random<8>, read_random_ahead<8>));
  std::free(buffer);
}

// Every thread reads its share of the bytes.
double read_rate(const Plan& plan, int64_t bytes) {
  const int64_t share = (bytes / plan.threads + kFewLines - 1) / kFewLines * kFewLines;
  std::vector<uint8_t*> buffers;
  for (int t = 0; t < plan.threads; ++t) buffers.push_back(make_buffer(share, MADV_HUGEPAGE));
  const auto rate_of = [&](auto read) {
    return rate(plan, [&](int t) { return read(buffers[static_cast<size_t>(t)], share); });
  };
  const double found = std::max(rate_of(read<1024>), rate_of(read<8192>));  // as the CPU likes
  for (uint8_t* buffer : buffers) std::free(buffer);
  return found;
}

void print_read(const Plan& plan, int count, char** sizes) {
  std::printf(", \"read_bytes_per_s\": {");
  for (int i = 0; i < count; ++i) {
    std::printf("%s\"%s\": %.4g", i == 0 ? "" : ", ", sizes[i],
                read_rate(plan, std::atoll(sizes[i])));
  }
  std::printf("}");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "limits: expected threads, seconds, and sizes in bytes\n");
    return 1;
  }
  const Plan plan = {std::atoi(argv[1]), std::atof(argv[2])};
  const double macs = rate(plan, [](int) { return multiply(); });
  const double tiles = may_use_tiles() ? rate(plan, [](int) { return multiply_tiles(); }) : 0;
  std::printf("{\"int8_macs_per_s\": %.4g, \"tile_macs_per_s\": %.4g", macs, tiles);
  print_read(plan, argc - 3, argv + 3);
  print_random("random_lines_per_s", plan, MADV_HUGEPAGE);
  print_random("random_lines_small_pages_per_s", plan, MADV_NOHUGEPAGE);
  std::printf("}\n");
  return 0;
}
