// The activations of an MLP: one formula for CPU and GPUs. M is arithmetic on floats: a type F, and functions like
// those of vec_portable.h, with exp2.
#pragma once

#include "common/params.h"
#include "common/softmax_state.h"

namespace fdpp {

// x / (1 + e^-y).
template <typename M>
FDPP_INLINE typename M::F times_sigmoid(typename M::F x, typename M::F y) {
  return M::div(x, M::add(M::broadcast(1.0f), M::exp2(M::mul(y, M::broadcast(-kLog2e)))));
}

template <typename M>
FDPP_INLINE typename M::F silu(typename M::F x) {
  return times_sigmoid<M>(x, x);
}

// x / 2 * (1 + tanh(y / 2)), which is x / (1 + e^-y), where y = 2 sqrt(2 / pi) * (x + 0.044715 x^3)
// (Hendrycks and Gimpel, arXiv 1606.08415).
template <typename M>
FDPP_INLINE typename M::F gelu_tanh(typename M::F x) {
  const auto slope = M::fma(M::mul(x, x), M::broadcast(0.0713548163f), M::broadcast(1.59576912f));
  return times_sigmoid<M>(x, M::mul(x, slope));
}

// x * Phi(x) = max(x, 0) - a * Phi(-a) for a = |x|. Phi(-a) is t * 2^(p(t) - a^2 / (2 ln 2)) with t = 1 / (1 + a / sqrt
// 8), as in Hastings, "Approximations for Digital Computers" (1955); p is a Chebyshev fit for a <= 14, where Phi(-a)
// leaves float32 (relative error 2.5e-7 before rounding).
template <typename M>
FDPP_INLINE typename M::F gelu(typename M::F x) {
  const auto a = M::max(M::sub(M::broadcast(0.0f), x), x);
  const auto t = M::div(M::broadcast(1.0f), M::fma(a, M::broadcast(0.353553391f), M::broadcast(1.0f)));
  auto p = M::broadcast(0.11707028f);
  p = M::fma(p, t, M::broadcast(-0.81853759f));
  p = M::fma(p, t, M::broadcast(2.16416669f));
  p = M::fma(p, t, M::broadcast(-2.61142063f));
  p = M::fma(p, t, M::broadcast(1.25729549f));
  p = M::fma(p, t, M::broadcast(-0.351986051f));
  p = M::fma(p, t, M::broadcast(0.636476994f));
  p = M::fma(p, t, M::broadcast(1.43220162f));
  p = M::fma(p, t, M::broadcast(-2.82526708f));
  const auto tail = M::mul(t, M::exp2(M::fma(M::mul(a, a), M::broadcast(-0.5f * kLog2e), p)));
  return M::sub(M::max(M::broadcast(0.0f), x), M::mul(a, tail));
}

template <typename M>
FDPP_INLINE typename M::F activate(Activation activation, typename M::F x) {
  switch (activation) {
    case Activation::identity: break;
    case Activation::relu: return M::max(M::broadcast(0.0f), x);
    case Activation::silu: return silu<M>(x);
    case Activation::gelu: return gelu<M>(x);
    case Activation::gelu_tanh: return gelu_tanh<M>(x);
  }
  return x;
}

}  // namespace fdpp
