// Functions of a vector of floats, for every vec_*.h.
#pragma once

#include "common/macros.h"
#include "common/softmax_state.h"

namespace fdpp::cpu {

// (2^f - 1) / f for f in [-0.5, 0.5]: a polynomial of degree 5 (Chebyshev fit; relative error 9e-9 before rounding).
template <typename V>
FDPP_INLINE typename V::F exp2_slope(typename V::F f) {
  auto p = V::broadcast(0.000154614478f);
  p = V::fma(p, f, V::broadcast(0.00133908668f));
  p = V::fma(p, f, V::broadcast(0.00961805694f));
  p = V::fma(p, f, V::broadcast(0.0555035695f));
  p = V::fma(p, f, V::broadcast(0.240226507f));
  return V::fma(p, f, V::broadcast(0.693147182f));
}

// 2^x to 2 units in the last place; 0 where the result is subnormal or less, infinity from x = 127.5 on, NaN kept.
template <typename V>
FDPP_INLINE typename V::F exp2(typename V::F x) {
  x = V::max(V::broadcast(V::zero_exponent), V::min(V::broadcast(128.0f), x));
  const auto n = V::round(x);
  const auto f = V::sub(x, n);
  return V::ldexp(V::fma(exp2_slope<V>(f), f, V::broadcast(1.0f)), n);
}

// tanh(x) = m / (m + 2) to a few units in the last place, NaN kept, where m = e^(2x) - 1 = 2^n (2^f - 1) + (2^n - 1):
// the sum does not cancel, so that tanh(x) is x where x is small. From |x| = 11 on, which the bounds stand for, it is
// 1.
template <typename V>
FDPP_INLINE typename V::F tanh(typename V::F x) {
  const auto y = V::mul(x, V::broadcast(2.0f * kLog2e));
  const auto bounded = V::max(V::broadcast(-32.0f), V::min(V::broadcast(32.0f), y));
  const auto n = V::round(bounded);
  const auto f = V::sub(bounded, n);
  const auto power = V::ldexp(V::broadcast(1.0f), n);
  const auto m = V::fma(V::mul(exp2_slope<V>(f), f), power, V::sub(power, V::broadcast(1.0f)));
  return V::div(m, V::add(m, V::broadcast(2.0f)));
}

// Lane i is the sum of a[i].
template <typename V>
FDPP_INLINE typename V::F sum_each(const typename V::F (&a)[V::width]) {
  typename V::F fours[V::width / 4];
  for (int i = 0; i < V::width / 4; ++i) fours[i] = V::sum_four(a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3]);
  return V::join_fours(fours);
}

// A vector type with what activation.h wants of one.
template <typename V>
struct Math : V {
  FDPP_INLINE static typename V::F exp2(typename V::F x) { return cpu::exp2<V>(x); }
};

}  // namespace fdpp::cpu
