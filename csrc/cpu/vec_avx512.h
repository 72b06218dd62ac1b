// Sixteen float lanes in AVX-512 (F, BW, DQ, VL). Interface shared by all vec_*.h; see vec_portable.h for its meaning.
#pragma once

#include <immintrin.h>

#include "common/dtype.h"

namespace fdpp::cpu {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  static constexpr int width = 16;
  static constexpr int registers = 32;
  static constexpr bool is_baseline = false;
  static constexpr float zero_exponent = -160.0f;

  FDPP_INLINE static F zero() { return _mm512_setzero_ps(); }
  FDPP_INLINE static F broadcast(float x) { return _mm512_set1_ps(x); }
  FDPP_INLINE static F lane_index() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

  FDPP_INLINE static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

  FDPP_INLINE static F load(const float* p) { return _mm512_loadu_ps(p); }
  FDPP_INLINE static F load(const bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  FDPP_INLINE static F load(const f16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  FDPP_INLINE static F load(const int8_t* p) {
    return from_int(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  FDPP_INLINE static F load(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  FDPP_INLINE static F load(const bf16* p, int n) { return widen(_mm256_maskz_loadu_epi16(first(n), p)); }
  FDPP_INLINE static F load(const f16* p, int n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)); }

  FDPP_INLINE static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  FDPP_INLINE static void store(bf16* p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x)); }
  FDPP_INLINE static void store(f16* p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_half(x)); }
  FDPP_INLINE static void store(float* p, F x, int n) { _mm512_mask_storeu_ps(p, first(n), x); }
  FDPP_INLINE static void store(bf16* p, F x, int n) { _mm256_mask_storeu_epi16(p, first(n), narrow(x)); }
  FDPP_INLINE static void store(f16* p, F x, int n) { _mm256_mask_storeu_epi16(p, first(n), to_half(x)); }

  // The compiler otherwise repeats the load in every multiplication that uses it, and loads are what runs out first.
  template <typename R>
  FDPP_INLINE static R in_register(R x) {
    __asm__("" : "+v"(x));
    return x;
  }

  FDPP_INLINE static F add(F a, F b) { return _mm512_add_ps(a, b); }
  FDPP_INLINE static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  FDPP_INLINE static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  FDPP_INLINE static F div(F a, F b) { return _mm512_div_ps(a, b); }
  FDPP_INLINE static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  FDPP_INLINE static F max(F a, F b) { return _mm512_max_ps(a, b); }
  FDPP_INLINE static F min(F a, F b) { return _mm512_min_ps(a, b); }
  FDPP_INLINE static F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  FDPP_INLINE static F ldexp(F x, F n) { return _mm512_scalef_ps(x, n); }
  FDPP_INLINE static F select_between(F x, F low, F high, F inside, F outside) {
    const __mmask16 in = _mm512_cmp_ps_mask(x, low, _CMP_GE_OQ) & _mm512_cmp_ps_mask(x, high, _CMP_LE_OQ);
    return _mm512_mask_blend_ps(in, outside, inside);
  }

  FDPP_INLINE static I load_int(const void* p) { return _mm512_loadu_si512(p); }
  FDPP_INLINE static void store_int(void* p, I x) { _mm512_storeu_si512(p, x); }
  FDPP_INLINE static void store_words(int16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x)));
  }
  FDPP_INLINE static I broadcast_int(int32_t x) { return _mm512_set1_epi32(x); }
  FDPP_INLINE static I bit_and(I a, I b) { return _mm512_and_si512(a, b); }
  FDPP_INLINE static I bit_or(I a, I b) { return _mm512_or_si512(a, b); }
  FDPP_INLINE static I shift_left(I x, int n) { return _mm512_slli_epi32(x, static_cast<unsigned>(n)); }
  FDPP_INLINE static I shift_right(I x, int n) { return _mm512_srli_epi32(x, static_cast<unsigned>(n)); }
  FDPP_INLINE static I sub_int(I a, I b) { return _mm512_sub_epi32(a, b); }
  FDPP_INLINE static I sub_words(I a, I b) { return _mm512_sub_epi16(a, b); }
  FDPP_INLINE static I low_bytes(I x) { return _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8); }
  FDPP_INLINE static I high_bytes(I x) { return _mm512_srai_epi16(x, 8); }
  using Table = __m512i;  // twice, as the instruction looks at 5 bits of a word
  FDPP_INLINE static Table table_of(const int8_t* values) {
    const __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
    return _mm512_inserti64x4(_mm512_castsi256_si512(words), words, 1);
  }
  FDPP_INLINE static I lookup(Table table, I x) { return _mm512_permutexvar_epi16(x, table); }
  // In this order: GCC otherwise makes a tree of many sums, for which there are too few registers.
  FDPP_INLINE static I dot(I sum, I a, I b) { return in_register(_mm512_add_epi32(sum, _mm512_madd_epi16(a, b))); }
  FDPP_INLINE static F from_int(I x) { return _mm512_cvtepi32_ps(x); }

  FDPP_INLINE static float sum(F x) {
    x = add(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    x = add(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    __m128 s = _mm512_castps512_ps128(x);
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }

  FDPP_INLINE static float max(F x) {
    x = max(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    x = max(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    __m128 m = _mm512_castps512_ps128(x);
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
  }

  // Sixteen sums at once: a transposing tree, four levels of two shuffles and an addition.
  FDPP_INLINE static F sum_four(F a, F b, F c, F d) {
    const F ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const F cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d lo = _mm512_castps_pd(ab), hi = _mm512_castps_pd(cd);
    return add(_mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi)), _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi)));
  }
  FDPP_INLINE static F join_fours(const F (&a)[4]) {
    const F lo = add(_mm512_shuffle_f32x4(a[0], a[1], 0x88), _mm512_shuffle_f32x4(a[0], a[1], 0xdd));
    const F hi = add(_mm512_shuffle_f32x4(a[2], a[3], 0x88), _mm512_shuffle_f32x4(a[2], a[3], 0xdd));
    return add(_mm512_shuffle_f32x4(lo, hi, 0x88), _mm512_shuffle_f32x4(lo, hi, 0xdd));
  }

 private:
  FDPP_INLINE static F widen(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }

  FDPP_INLINE static __m256i to_half(F x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

  // As from_float<bf16>: nearest even, NaN kept.
  FDPP_INLINE static __m256i narrow(F x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16));
  }
};

}  // namespace fdpp::cpu
