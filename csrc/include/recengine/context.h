#pragma once

#include <cstdint>
#include <string>

#include "recengine/tensor.h"

namespace recengine {

class ThreadPool;  // cpu/thread_pool.h

// Instruction sets that kernels are written for, weakest first.
enum class Isa : uint8_t { kPortable, kAvx2, kAvx512, kAvx512Vnni, kAmxInt8 };

// What an operation runs on: its threads and its instruction set.
struct Context {
  ThreadPool* pool = nullptr;  // null: the calling thread alone
  Isa isa = Isa::kPortable;
};

// The best instruction set of this CPU, or the one that RECENGINE_ISA names (portable, avx2,
// avx512, avx512_vnni, amx_int8). Throws DeviceError when the one named cannot be used.
Isa default_isa();

// True when this CPU can run kernels of `isa` and, for amx_int8, the system lets this process use
// AMX's tiles and the compiler that built this knew them.
bool isa_supported(Isa isa);

// All of them, weakest first.
Span<const Isa> isas();

std::string isa_name(Isa isa);
Isa isa_from_name(const std::string& name);

// Cores this process may use: the affinity mask, capped by the cgroup's CPU quota.
int usable_cores();

}  // namespace recengine
