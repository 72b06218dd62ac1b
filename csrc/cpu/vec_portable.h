// Eight float lanes in the vector extension that GCC and Clang share, which they turn into whatever the baseline has
// (SSE2, NEON). It also defines the interface of the other vec_*.h: F is a vector of `width` floats; load and store
// convert from and to the storage type, with a count they touch only the first n elements and fill with zeros; max and
// min return their second argument when either is NaN; round is to nearest even; ldexp(x, n) is x * 2^n for integers
// from zero_exponent (where it is 0) to 128 (where it is infinite); select_between takes `inside` where low <= x <=
// high; lane 4 i + j of join_fours(a) is the sum of the j-th vector of which sum_four made a[i]; in_register(x) is x,
// loaded once.
//
// I is a vector of as many int32, or of twice as many int16 (words): shifts are of int32 and without sign; dot(sum, a,
// b) adds to each int32 the products of its two words; store_words narrows integers that fit; low_bytes and high_bytes
// widen a byte of each word with its sign; lookup(table_of(t), x) is t[i] of each word whose low four bits are i,
// whatever the others are.
#pragma once

#include <cstring>

#include "common/dtype.h"

namespace fdpp::cpu {

struct Portable {
  static constexpr int width = 8;
  static constexpr int registers = 16;
  static constexpr bool is_baseline = true;
  static constexpr float zero_exponent = -127.0f;
  typedef float F __attribute__((vector_size(32)));
  typedef int32_t I __attribute__((vector_size(32)));
  typedef uint32_t U __attribute__((vector_size(32)));
  typedef int16_t W __attribute__((vector_size(32)));
  typedef uint16_t H __attribute__((vector_size(16)));
  typedef int8_t B __attribute__((vector_size(8)));

  FDPP_INLINE static F zero() { return F{}; }
  FDPP_INLINE static F broadcast(float x) { return F{} + x; }
  FDPP_INLINE static F lane_index() { return F{0, 1, 2, 3, 4, 5, 6, 7}; }

  FDPP_INLINE static F load(const float* p) {
    F x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  FDPP_INLINE static F load(const bf16* p) {
    H bits;
    std::memcpy(&bits, p, sizeof bits);
    return reinterpret_cast<F>(__builtin_convertvector(bits, I) << 16);
  }
  FDPP_INLINE static F load(const f16* p) {  // as to_float(f16)
    H half;
    std::memcpy(&half, p, sizeof half);
    const I bits = __builtin_convertvector(half, I);
    const F scaled = reinterpret_cast<F>((bits & 0x7fff) << 13) * 0x1p112f;
    const I infinite = ((bits & 0x7c00) == 0x7c00) & 0x7f800000;
    return reinterpret_cast<F>(reinterpret_cast<I>(scaled) | infinite | ((bits & 0x8000) << 16));
  }

  FDPP_INLINE static F load(const int8_t* p) {
    B x;
    std::memcpy(&x, p, sizeof x);
    return __builtin_convertvector(x, F);
  }

  template <typename T>
  FDPP_INLINE static F load(const T* p, int n) {
    F x{};
    for (int i = 0; i < n; ++i) x[i] = to_float(p[i]);
    return x;
  }

  FDPP_INLINE static void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }

  template <typename T>
  FDPP_INLINE static void store(T* p, F x, int n = width) {
    for (int i = 0; i < n; ++i) p[i] = from_float<T>(x[i]);
  }

  template <typename R>
  FDPP_INLINE static R in_register(R x) {
    return x;
  }

  FDPP_INLINE static F add(F a, F b) { return a + b; }
  FDPP_INLINE static F sub(F a, F b) { return a - b; }
  FDPP_INLINE static F mul(F a, F b) { return a * b; }
  FDPP_INLINE static F div(F a, F b) { return a / b; }
  FDPP_INLINE static F fma(F a, F b, F c) { return a * b + c; }
  FDPP_INLINE static F max(F a, F b) { return a > b ? a : b; }
  FDPP_INLINE static F min(F a, F b) { return a < b ? a : b; }
  // Adding 1.5 * 2^23 leaves no room for a fraction; good for |x| < 2^22.
  FDPP_INLINE static F round(F x) { return (x + 0x1.8p23f) - 0x1.8p23f; }
  FDPP_INLINE static F ldexp(F x, F n) {
    // The sum's low bits hold n + 127; a NaN in n only spoils the factor of a NaN.
    const I exponent = reinterpret_cast<I>(n + (0x1.8p23f + 127.0f));
    return x * reinterpret_cast<F>(exponent << 23);
  }
  FDPP_INLINE static F select_between(F x, F low, F high, F inside, F outside) {
    return ((x >= low) & (x <= high)) ? inside : outside;
  }

  FDPP_INLINE static I load_int(const void* p) {
    I x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  FDPP_INLINE static void store_int(void* p, I x) { std::memcpy(p, &x, sizeof x); }
  FDPP_INLINE static void store_words(int16_t* p, F x) {
    for (int i = 0; i < width; ++i) p[i] = static_cast<int16_t>(x[i]);
  }
  FDPP_INLINE static I broadcast_int(int32_t x) { return I{} + x; }
  FDPP_INLINE static I bit_and(I a, I b) { return a & b; }
  FDPP_INLINE static I bit_or(I a, I b) { return a | b; }
  FDPP_INLINE static I shift_left(I x, int n) { return x << n; }
  FDPP_INLINE static I shift_right(I x, int n) { return reinterpret_cast<I>(reinterpret_cast<U>(x) >> n); }
  FDPP_INLINE static I sub_int(I a, I b) { return a - b; }
  FDPP_INLINE static I sub_words(I a, I b) {
    return reinterpret_cast<I>(reinterpret_cast<W>(a) - reinterpret_cast<W>(b));
  }
  FDPP_INLINE static I low_bytes(I x) { return reinterpret_cast<I>((reinterpret_cast<W>(x) << 8) >> 8); }
  FDPP_INLINE static I high_bytes(I x) { return reinterpret_cast<I>(reinterpret_cast<W>(x) >> 8); }
  using Table = const int8_t*;
  FDPP_INLINE static Table table_of(const int8_t* values) { return values; }
  FDPP_INLINE static I lookup(Table table, I x) {
    W words = reinterpret_cast<W>(x);
    for (int i = 0; i < 2 * width; ++i) words[i] = table[words[i] & 15];
    return reinterpret_cast<I>(words);
  }
  FDPP_INLINE static I dot(I sum, I a, I b) {
    return sum + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
  }
  FDPP_INLINE static F from_int(I x) { return __builtin_convertvector(x, F); }

  FDPP_INLINE static float sum(F x) { return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7])); }

  FDPP_INLINE static float max(F x) {
    float most = x[0];
    for (int i = 1; i < width; ++i) most = x[i] > most ? x[i] : most;
    return most;
  }

  FDPP_INLINE static F sum_four(F a, F b, F c, F d) { return F{sum(a), sum(b), sum(c), sum(d)}; }
  FDPP_INLINE static F join_fours(const F (&a)[2]) {
    return F{a[0][0], a[0][1], a[0][2], a[0][3], a[1][0], a[1][1], a[1][2], a[1][3]};
  }
};

}  // namespace fdpp::cpu
