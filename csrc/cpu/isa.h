#pragma once

#include "recengine/context.h"

namespace recengine {

// The kernel for an instruction set, of those written for each; an operation that gains nothing
// from one gives the next weaker kernel in its place.
template <typename Kernel>
Kernel pick_kernel(Isa isa, Kernel portable, Kernel avx2, Kernel avx512, Kernel avx512_vnni,
                   Kernel amx_int8) {
  switch (isa) {
    case Isa::kPortable:
      return portable;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx512Vnni:
      return avx512_vnni;
    case Isa::kAmxInt8:
      return amx_int8;
  }
  return portable;
}

}  // namespace recengine
