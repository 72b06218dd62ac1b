// Functions of a vector of floats, for every vec_*.h.
#pragma once

#include "common/macros.h"
#include "common/softmax_state.h"

namespace fdpp::cpu {

// 2^x to 2 units in the last place; 0 where the result is subnormal or less, infinity from x = 127.5 on, NaN kept. A
// polynomial of degree 6 on [-0.5, 0.5] (Chebyshev fit of (2^f - 1) / f; relative error 9e-9 before rounding).
template <typename V>
FDPP_INLINE typename V::F exp2(typename V::F x) {
  x = V::max(V::broadcast(V::zero_exponent), V::min(V::broadcast(128.0f), x));
  const auto n = V::round(x);
  const auto f = V::sub(x, n);
  auto p = V::broadcast(0.000154614478f);
  p = V::fma(p, f, V::broadcast(0.00133908668f));
  p = V::fma(p, f, V::broadcast(0.00961805694f));
  p = V::fma(p, f, V::broadcast(0.0555035695f));
  p = V::fma(p, f, V::broadcast(0.240226507f));
  p = V::fma(p, f, V::broadcast(0.693147182f));
  p = V::fma(p, f, V::broadcast(1.0f));
  return V::ldexp(p, n);
}

// tanh(x) = 1 - 2 / (e^(2x) + 1): absolute error below 2e-7, which is what a softcapped logit needs.
template <typename V>
FDPP_INLINE typename V::F tanh(typename V::F x) {
  const auto e = exp2<V>(V::mul(x, V::broadcast(2.0f * kLog2e)));
  return V::sub(V::broadcast(1.0f), V::div(V::broadcast(2.0f), V::add(e, V::broadcast(1.0f))));
}

// x / (1 + e^-x)
template <typename V>
FDPP_INLINE typename V::F silu(typename V::F x) {
  const auto e = exp2<V>(V::mul(x, V::broadcast(-kLog2e)));
  return V::div(x, V::add(V::broadcast(1.0f), e));
}

}  // namespace fdpp::cpu
