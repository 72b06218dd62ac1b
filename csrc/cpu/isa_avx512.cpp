// The kernels for x86-64 with AVX-512 F, BW, DQ and VL.
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/isa_target.h"

FDPP_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#include "cpu/isa_table.h"
#include "cpu/vec_avx512.h"

namespace fdpp::cpu {

const Kernels kAvx512Kernels = IsaTable<Avx512>::kernels("avx512");

}  // namespace fdpp::cpu

FDPP_TARGET_END

#endif
