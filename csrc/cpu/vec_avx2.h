// Eight float lanes in AVX2 with FMA and F16C. Interface shared by all vec_*.h; see vec_portable.h for its meaning.
#pragma once

#include <immintrin.h>

#include "common/dtype.h"

namespace fdpp::cpu {

struct Avx2 {
  using F = __m256;
  using I = __m256i;
  static constexpr int width = 8;
  static constexpr int registers = 16;
  static constexpr bool is_baseline = false;
  static constexpr float zero_exponent = -127.0f;

  FDPP_INLINE static F zero() { return _mm256_setzero_ps(); }
  FDPP_INLINE static F broadcast(float x) { return _mm256_set1_ps(x); }
  FDPP_INLINE static F lane_index() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }

  FDPP_INLINE static F load(const float* p) { return _mm256_loadu_ps(p); }
  FDPP_INLINE static F load(const bf16* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  FDPP_INLINE static F load(const f16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }

  FDPP_INLINE static F load(const int8_t* p) {
    return from_int(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }

  template <typename T>
  FDPP_INLINE static F load(const T* p, int n) {
    T lanes[width] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
  }

  FDPP_INLINE static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  FDPP_INLINE static void store(bf16* p, F x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(x)); }
  FDPP_INLINE static void store(f16* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  template <typename T>
  FDPP_INLINE static void store(T* p, F x, int n) {
    T lanes[width];
    store(lanes, x);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }

  // The compiler otherwise repeats the load in every multiplication that uses it, and loads are what runs out first.
  template <typename R>
  FDPP_INLINE static R in_register(R x) {
    __asm__("" : "+x"(x));
    return x;
  }

  FDPP_INLINE static F add(F a, F b) { return _mm256_add_ps(a, b); }
  FDPP_INLINE static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  FDPP_INLINE static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  FDPP_INLINE static F div(F a, F b) { return _mm256_div_ps(a, b); }
  FDPP_INLINE static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  FDPP_INLINE static F max(F a, F b) { return _mm256_max_ps(a, b); }
  FDPP_INLINE static F min(F a, F b) { return _mm256_min_ps(a, b); }
  FDPP_INLINE static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  FDPP_INLINE static F ldexp(F x, F n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return mul(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }
  FDPP_INLINE static F select_between(F x, F low, F high, F inside, F outside) {
    const F in = _mm256_and_ps(_mm256_cmp_ps(x, low, _CMP_GE_OQ), _mm256_cmp_ps(x, high, _CMP_LE_OQ));
    return _mm256_blendv_ps(outside, inside, in);
  }

  FDPP_INLINE static I load_int(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  FDPP_INLINE static void store_int(void* p, I x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
  FDPP_INLINE static void store_words(int16_t* p, F x) {
    const __m256i ints = _mm256_cvtps_epi32(x);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi32(_mm256_castsi256_si128(ints), _mm256_extracti128_si256(ints, 1)));
  }
  FDPP_INLINE static I broadcast_int(int32_t x) { return _mm256_set1_epi32(x); }
  FDPP_INLINE static I bit_and(I a, I b) { return _mm256_and_si256(a, b); }
  FDPP_INLINE static I bit_or(I a, I b) { return _mm256_or_si256(a, b); }
  FDPP_INLINE static I shift_left(I x, int n) { return _mm256_slli_epi32(x, n); }
  FDPP_INLINE static I shift_right(I x, int n) { return _mm256_srli_epi32(x, n); }
  FDPP_INLINE static I sub_int(I a, I b) { return _mm256_sub_epi32(a, b); }
  FDPP_INLINE static I sub_words(I a, I b) { return _mm256_sub_epi16(a, b); }
  FDPP_INLINE static I low_bytes(I x) { return _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8); }
  FDPP_INLINE static I high_bytes(I x) { return _mm256_srai_epi16(x, 8); }
  using Table = __m256i;
  FDPP_INLINE static Table table_of(const int8_t* values) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
  }
  FDPP_INLINE static I lookup(Table table, I x) {
    return low_bytes(_mm256_shuffle_epi8(table, bit_and(x, _mm256_set1_epi16(15))));
  }
  // In this order: GCC otherwise makes a tree of many sums, for which there are too few registers.
  FDPP_INLINE static I dot(I sum, I a, I b) { return in_register(_mm256_add_epi32(sum, _mm256_madd_epi16(a, b))); }
  FDPP_INLINE static F from_int(I x) { return _mm256_cvtepi32_ps(x); }

  FDPP_INLINE static float sum(F x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }

  FDPP_INLINE static float max(F x) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
  }

  // Eight sums at once: horizontal additions within the halves, then the halves together.
  FDPP_INLINE static F sum_four(F a, F b, F c, F d) {
    return _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  }
  FDPP_INLINE static F join_fours(const F (&a)[2]) {
    return add(_mm256_permute2f128_ps(a[0], a[1], 0x20), _mm256_permute2f128_ps(a[0], a[1], 0x31));
  }

 private:
  FDPP_INLINE static F widen(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }

  // As from_float<bf16>: nearest even, NaN kept.
  FDPP_INLINE static __m128i narrow(F x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  }
};

}  // namespace fdpp::cpu
