// The kernels for x86-64 with AVX-512 BF16 and AMX bfloat16 tiles: as avx512_bf16, and a flat GEMM on tiles.
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/isa_target.h"

FDPP_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512vnni,avx512bf16,amx-tile,amx-bf16")

#include "cpu/amx_linear.h"
#include "cpu/amx_tiles.h"

namespace fdpp::cpu {

namespace {

bool tiled(const LinearParams& p, int config) { return p.dtype == DType::bf16 && config == kNumFlatGemmConfigs; }

int flat_gemm_configs(DType dtype) { return kAvx512Bf16Kernels.flat_gemm_configs(dtype) + (dtype == DType::bf16); }

int64_t packed_x_bytes(const LinearParams& p, int config) {
  return tiled(p, config) ? AmxLinear<AmxTiles>::packed_x_bytes(p) : kAvx512Bf16Kernels.packed_x_bytes(p, config);
}

void pack_x(const LinearParams& p, int config) {
  tiled(p, config) ? AmxLinear<AmxTiles>::pack_x(p) : kAvx512Bf16Kernels.pack_x(p, config);
}

void flat_gemm(const LinearParams& p, int config, int64_t begin, int64_t end) {
  tiled(p, config) ? AmxLinear<AmxTiles>::flat_gemm(p, begin, end)
                   : kAvx512Bf16Kernels.flat_gemm(p, config, begin, end);
}

}  // namespace

Kernels amx_kernels() {
  Kernels kernels = kAvx512Bf16Kernels;
  kernels.name = "amx";
  kernels.flat_gemm_configs = flat_gemm_configs;
  kernels.packed_x_bytes = packed_x_bytes;
  kernels.pack_x = pack_x;
  kernels.flat_gemm = flat_gemm;
  return kernels;
}

}  // namespace fdpp::cpu

FDPP_TARGET_END

#endif
