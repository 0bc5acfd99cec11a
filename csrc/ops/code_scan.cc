#include "cpu/isa.h"
#include "ops/code_scan_kernel.h"

namespace recengine {
namespace {

// So few wait for the items all the time, which tiles then read no faster than AVX-512 VNNI.
constexpr int64_t kFewQueries = 2;

constexpr CodeScanKernel kPortable = {code_scan_portable,   code_thresholds_portable,
                                      code_unpack_portable, coarse_scan_portable,
                                      low_scan_portable,    4.4};
constexpr CodeScanKernel kAvx2 = {code_scan_avx2,
                                  code_thresholds_avx2,
                                  code_unpack_avx2,
                                  coarse_scan_avx2,
                                  low_scan_avx2,
                                  0.37,
                                  /*summed_in_16_bits=*/true};
constexpr CodeScanKernel kVnni = {code_scan_avx512_vnni,   code_thresholds_avx512_vnni,
                                  code_unpack_avx512_vnni, coarse_scan_avx512_vnni,
                                  low_scan_avx512_vnni,    0.1};

#ifdef RECENGINE_AMX
constexpr CodeScanKernel kAmx = {code_scan_amx_int8,          code_thresholds_avx512_vnni,
                                 code_unpack_avx512_vnni,     coarse_scan_avx512_vnni,
                                 low_scan_avx512_vnni,        0.03,
                                 /*summed_in_16_bits=*/false, kMostTileQueries,
                                 /*by_query=*/true,
                                 /*shares_ahead=*/true,       code_scan_begin_amx_int8,
                                 code_scan_end_amx_int8};
#else
constexpr CodeScanKernel kAmx = kVnni;
#endif

}  // namespace

const CodeScanKernel& code_scan_for(Isa isa, int64_t queries) {
  const CodeScanKernel* const amx = queries <= kFewQueries ? &kVnni : &kAmx;
  return *pick_kernel(isa, &kPortable, &kAvx2, &kAvx2, &kVnni, amx);
}

}  // namespace recengine
