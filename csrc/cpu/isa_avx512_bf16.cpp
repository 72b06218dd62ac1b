// The kernels for x86-64 with AVX-512 and its bfloat16 dot products.
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/isa_target.h"

FDPP_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512vnni,avx512bf16")

#include "cpu/isa_table.h"
#include "cpu/vec_avx512_bf16.h"

namespace fdpp::cpu {

const Kernels kAvx512Bf16Kernels = IsaTable<Avx512Bf16>::kernels("avx512_bf16");

}  // namespace fdpp::cpu

FDPP_TARGET_END

#endif
