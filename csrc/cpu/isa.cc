#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <iterator>
#include <string>

#include "recengine/context.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr Isa kWeakestFirst[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni,
                                 Isa::kAmxInt8};

// Linux lets a process use AMX's tiles once it has asked. It refuses where a thread has an
// alternate signal stack that is too small for them (11 KB), and later refuses such stacks.
bool amx_int8() {
#ifdef RECENGINE_AMX
  static const bool allowed = [] {
    constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
    constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
    unsigned palettes = 0;  // some hypervisors show AMX without its shapes of tiles
    unsigned unused = 0;
    return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") &&
           __get_cpuid_count(0x1d, 0, &palettes, &unused, &unused, &unused) != 0 && palettes > 0 &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return allowed;
#else
  return false;
#endif
}

Isa best_isa() {
  Isa best = Isa::kPortable;
  for (Isa isa : kWeakestFirst) {
    if (isa_supported(isa)) best = isa;
  }
  return best;
}

}  // namespace

bool isa_supported(Isa isa) {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  const bool avx512_vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  switch (isa) {
    case Isa::kPortable:
      return true;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx512Vnni:
      return avx512_vnni;
    case Isa::kAmxInt8:
      return avx512_vnni && amx_int8();
  }
  return false;
}

Span<const Isa> isas() { return {kWeakestFirst, std::size(kWeakestFirst)}; }

std::string isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Vnni:
      return "avx512_vnni";
    case Isa::kAmxInt8:
      return "amx_int8";
  }
  return "unknown";
}

Isa isa_from_name(const std::string& name) {
  std::string names;
  for (Isa isa : kWeakestFirst) {
    if (name == isa_name(isa)) return isa;
    names += (names.empty() ? "" : ", ") + isa_name(isa);
  }
  throw DeviceError("[isa] expected one of " + names + "; found \"" + name + "\"");
}

Isa default_isa() {
  const char* forced = std::getenv("RECENGINE_ISA");
  if (forced == nullptr || *forced == '\0') return best_isa();
  const Isa isa = isa_from_name(forced);
  if (!isa_supported(isa)) {
    throw DeviceError("[isa] RECENGINE_ISA asks for " + isa_name(isa) +
                      ", which this CPU lacks; its best is " + isa_name(best_isa()));
  }
  return isa;
}

}  // namespace recengine
