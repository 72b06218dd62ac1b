// The kernels for x86-64 with AVX2, FMA and F16C (2013 and later).
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/isa_target.h"

FDPP_TARGET_BEGIN("avx2,fma,f16c")

#include "cpu/isa_table.h"
#include "cpu/vec_avx2.h"

namespace fdpp::cpu {

const Kernels kAvx2Kernels = IsaTable<Avx2>::kernels("avx2", true);

}  // namespace fdpp::cpu

FDPP_TARGET_END

#endif
