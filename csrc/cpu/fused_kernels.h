// Norms, activations, rotary embedding with cache append: the element-wise kernels of one instruction set.
#pragma once

#include <type_traits>

#include "common/activation.h"
#include "common/params.h"
#include "cpu/cache.h"
#include "cpu/math.h"

namespace fdpp::cpu {

template <typename V, typename T>
struct FusedKernels {
  using F = typename V::F;

  // Elements of the vector that begins where `left` elements are left.
  FDPP_INLINE static int lanes(int64_t left) { return left < V::width ? static_cast<int>(left) : V::width; }
  template <typename S>
  FDPP_INLINE static F load(const S* p, int n) {
    return n == V::width ? V::load(p) : V::load(p, n);
  }
  template <typename S>
  FDPP_INLINE static void store(S* p, F x, int n) {
    n == V::width ? V::store(p, x) : V::store(p, x, n);
  }

  static void norm(const NormParams& p, int64_t begin, int64_t end) {
    if (p.residual != nullptr && p.residual_dtype == DType::f32) return add_norm<float>(p, begin, end);
    add_norm<T>(p, begin, end);
  }

  // R: storage type of the residual. The norm is that of the sum before it is rounded to R, which may have no room for
  // it.
  template <typename R>
  static void add_norm(const NormParams& p, int64_t begin, int64_t end) {
    const T *weight = static_cast<const T*>(p.weight), *bias = static_cast<const T*>(p.bias);
    for (int64_t row = begin; row < end; ++row) {
      const T* x = static_cast<const T*>(p.x) + row / p.inner * p.outer_stride + row % p.inner * p.inner_stride;
      T* out = static_cast<T*>(p.out) + row * p.width;
      R* residual = p.residual == nullptr ? nullptr : static_cast<R*>(p.residual) + row * p.width;
      const auto normed = [&](int64_t i, int n) {
        return residual == nullptr ? load(x + i, n) : V::add(load(residual + i, n), load(x + i, n));
      };
      F mean = V::zero(), squares = V::zero();
      if (p.centered) {
        F sum = V::zero();
        for (int64_t i = 0; i < p.width; i += V::width) sum = V::add(sum, normed(i, lanes(p.width - i)));
        mean = V::broadcast(V::sum(sum) / static_cast<float>(p.width));
      }
      for (int64_t i = 0; i < p.width; i += V::width) {
        const int n = lanes(p.width - i);
        F value = V::sub(normed(i, n), mean);
        // Lanes beyond the row are 0, not its mean.
        if (n < V::width) value = V::select_between(V::lane_index(), V::zero(), V::broadcast(n - 1), value, V::zero());
        squares = V::fma(value, value, squares);
      }
      const F scale = V::broadcast(1.0f / sqrtf(V::sum(squares) / static_cast<float>(p.width) + p.eps));
      for (int64_t i = 0; i < p.width; i += V::width) {
        const int n = lanes(p.width - i);
        const F value = normed(i, n);
        if (residual != nullptr) store(residual + i, value, n);
        const F scaled = V::mul(V::mul(V::sub(value, mean), scale), load(weight + i, n));
        store(out + i, bias == nullptr ? scaled : V::add(scaled, load(bias + i, n)), n);
      }
    }
  }

  static void argmax(const ArgmaxParams& p, int64_t begin, int64_t end) {
    constexpr int64_t kBlock = 64 * V::width;
    for (int64_t row = begin; row < end; ++row) {
      const T* x = static_cast<const T*>(p.x) + row * p.row_stride;
      int64_t first = 0, last = 0;  // the block that holds the largest element first
      float most = -INFINITY;
      F infinite = V::zero();  // NaN where anything is
      for (int64_t block = 0; block < p.columns; block += kBlock) {
        const int64_t stop = block + kBlock < p.columns ? block + kBlock : p.columns;
        F largest = V::broadcast(-INFINITY);
        int64_t i = block;
        for (; i + V::width <= stop; i += V::width) {
          const F value = V::load(x + i);
          largest = V::max(value, largest);
          infinite = V::add(infinite, V::sub(value, value));
        }
        float found = V::max(largest);
        for (; i < stop; ++i) {
          const float value = to_float(x[i]);
          found = value > found ? value : found;
          infinite = V::add(infinite, V::broadcast(value - value));
        }
        if (found > most) most = found, first = block, last = stop;
      }
      const float sum = V::sum(infinite);
      if (sum != sum) first = 0, last = p.columns;
      int64_t at = first;
      for (int64_t i = first + 1; i < last; ++i) {
        const float best = to_float(x[at]), value = to_float(x[i]);
        if (best != best) break;
        if (value > best || value != value) at = i;
      }
      static_cast<T*>(p.values)[row] = x[at];
      p.indices[row] = at;
    }
  }

  static void silu_mul(const SiluMulParams& p, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* gate =
          static_cast<const T*>(p.gate_up) + row / p.inner * p.outer_stride + row % p.inner * p.inner_stride;
      const T* up = gate + p.width;
      T* out = static_cast<T*>(p.out) + row * p.width;
      for (int64_t i = 0; i < p.width; i += V::width) {
        const int n = lanes(p.width - i);
        store(out + i, V::mul(silu<Math<V>>(load(gate + i, n)), load(up + i, n)), n);
      }
    }
  }

  // The first and the second of n pairs, and zeros. Copies and loops of known length become vector instructions, and
  // halves of words the shifts that they are.
  FDPP_INLINE static void split_pairs(T (&first)[V::width], T (&second)[V::width], const T* pairs, int n) {
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first of a pair is the lower half of a word");
    using Half = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
    using Pair = std::conditional_t<sizeof(T) == 2, uint32_t, uint64_t>;
    Pair words[V::width] = {};
    if (n == V::width) {
      __builtin_memcpy(words, pairs, sizeof words);
    } else {
      __builtin_memcpy(words, pairs, n * sizeof(Pair));
    }
    Half halves[2][V::width];
    for (int k = 0; k < V::width; ++k) halves[0][k] = static_cast<Half>(words[k]);
    for (int k = 0; k < V::width; ++k) halves[1][k] = static_cast<Half>(words[k] >> 8 * sizeof(Half));
    __builtin_memcpy(first, halves[0], sizeof first);
    __builtin_memcpy(second, halves[1], sizeof second);
  }

  static void linear_epilogue(const EpilogueParams& params, int64_t begin, int64_t end) {
    if (params.linear.out_dtype == DType::f32) return finish<float>(params, begin, end);
    finish<T>(params, begin, end);
  }

  // R: storage type of the residual and the result.
  template <typename R>
  static void finish(const EpilogueParams& params, int64_t begin, int64_t end) {
    const LinearParams& p = params.linear;
    const int64_t columns = out_columns(p), step = p.gated ? 2 : 1;
    for (int64_t row = 0; row < p.M; ++row) {
      const T* product = static_cast<const T*>(params.product) + row * p.N;
      const R* residual = p.residual == nullptr ? nullptr : static_cast<const R*>(p.residual) + row * p.residual_stride;
      R* out = static_cast<R*>(p.out) + row * columns;
      for (int64_t i = begin / step; i < end / step; i += V::width) {
        const int n = lanes(end / step - i);
        F y;
        if (p.gated) {
          T gate[V::width], up[V::width];
          split_pairs(gate, up, product + 2 * i, n);
          y = V::mul(activate<Math<V>>(p.activation, V::load(gate)), V::load(up));
        } else {
          y = activate<Math<V>>(p.activation, load(product + i, n));
        }
        if (residual != nullptr) y = V::add(y, load(residual + i, n));
        store(out + i, y, n);
      }
    }
  }

  // Rotates one head: (a, b) -> (a cos - b sin, b cos + a sin) for the pairs (i, i + half) or (2i, 2i + 1).
  FDPP_INLINE static void rotate(T* to, const T* from, const float* cos, const float* sin, const RopeParams& p) {
    const int half = p.rotated_dim / 2;
    if (p.interleaved) {
      for (int i = 0; i < half; ++i) {
        const float a = to_float(from[2 * i]), b = to_float(from[2 * i + 1]);
        to[2 * i] = from_float<T>(a * cos[i] - b * sin[i]);
        to[2 * i + 1] = from_float<T>(b * cos[i] + a * sin[i]);
      }
    } else {
      for (int64_t i = 0; i < half; i += V::width) {
        const int n = lanes(half - i);
        const F a = load(from + i, n), b = load(from + half + i, n);
        const F c = load(cos + i, n), s = load(sin + i, n);
        store(to + i, V::sub(V::mul(a, c), V::mul(b, s)), n);
        store(to + half + i, V::fma(b, c, V::mul(a, s)), n);
      }
    }
    copy(to + p.rotated_dim, from + p.rotated_dim, p.head_dim - p.rotated_dim);
  }

  FDPP_INLINE static void copy(T* to, const T* from, int64_t count) {
    __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
  }

  static void rope_append(const RopeParams& p, int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t b = token / p.query_len, s = token % p.query_len;
      const int32_t position = p.positions[b * p.positions_stride + s];
      const T* q = static_cast<const T*>(p.q) + b * p.q_strides[0] + s * p.q_strides[1];
      T* out = static_cast<T*>(p.out) + token * p.query_heads * p.head_dim;
      if (position < 0) {
        for (int h = 0; h < p.query_heads; ++h) copy(out + h * p.head_dim, q + h * p.q_strides[2], p.head_dim);
        continue;
      }
      const float* cos = p.cos + int64_t{position} * (p.rotated_dim / 2);
      const float* sin = p.sin + int64_t{position} * (p.rotated_dim / 2);
      for (int h = 0; h < p.query_heads; ++h) rotate(out + h * p.head_dim, q + h * p.q_strides[2], cos, sin, p);
      const T* k = static_cast<const T*>(p.k) + b * p.k_strides[0] + s * p.k_strides[1];
      const T* v = static_cast<const T*>(p.v) + b * p.v_strides[0] + s * p.v_strides[1];
      const Slot slot = slot_of(p.layout, b, position);
      T* k_slot = slot_pointer<T>(p.k_cache, slot);
      T* v_slot = slot_pointer<T>(p.v_cache, slot);
      for (int h = 0; h < p.kv_heads; ++h) {
        rotate(k_slot + h * p.k_cache.head_stride, k + h * p.k_strides[2], cos, sin, p);
        copy(v_slot + h * p.v_cache.head_stride, v + h * p.v_strides[2], p.head_dim);
      }
    }
  }
};

}  // namespace fdpp::cpu
