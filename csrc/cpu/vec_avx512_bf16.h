// AVX-512 whose processor multiplies pairs of bfloat16 and adds them to float32 (AVX512_BF16), where subnormals count
// as zero, and pairs of int16 (AVX512_VNNI).
#pragma once

#include "cpu/linear_kernels.h"
#include "cpu/vec_avx512.h"

namespace fdpp::cpu {

struct Avx512Bf16 : Avx512 {
  FDPP_INLINE static I dot(I sum, I a, I b) { return _mm512_dpwssd_epi32(sum, a, b); }
};

template <>
struct Product<Avx512Bf16, bf16> {
  using Packed = bf16;
  using Operand = __m512bh;
  static constexpr int step = 32;

  FDPP_INLINE static Operand load_x(const Packed* p) { return load_weight(p); }
  FDPP_INLINE static Operand load_weight(const bf16* p) { return reinterpret_cast<Operand>(_mm512_loadu_si512(p)); }
  FDPP_INLINE static Operand load_weight(const bf16* p, int n) {
    return reinterpret_cast<Operand>(_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1u), p));
  }
  FDPP_INLINE static __m512 mac(__m512 sum, Operand x, Operand w) { return _mm512_dpbf16_ps(sum, x, w); }

  FDPP_INLINE static void pack(Packed* to, const bf16* from, int n) {
    _mm512_storeu_si512(to, reinterpret_cast<__m512i>(load_weight(from, n)));
  }
  FDPP_INLINE static void pack(Packed* to, const bf16* from) { pack(to, from, step); }
};

}  // namespace fdpp::cpu
