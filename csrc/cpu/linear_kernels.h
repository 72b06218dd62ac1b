// y = x W^T + b for few rows of x: the GEMV and the flat GEMM of one instruction set.
//
// Both stream W once, row after row, and are bound by memory. x is packed first: converted to what the multiply wants
// and padded with zeros to whole vectors, so that only the weights need care at the end of a row.
#pragma once

#include "common/params.h"
#include "cpu/kernels.h"
#include "cpu/math.h"

namespace fdpp::cpu {

// How a product is formed: by default in float32. An instruction set with dot products of a narrow type specialises it.
template <typename V, typename T>
struct Product {
  using Packed = float;
  using Operand = typename V::F;
  static constexpr int step = V::width;  // elements of K per operand

  FDPP_INLINE static Operand load_x(const Packed* p) { return V::load(p); }
  FDPP_INLINE static Operand load_weight(const T* p) { return V::load(p); }
  FDPP_INLINE static Operand load_weight(const T* p, int n) { return V::load(p, n); }
  FDPP_INLINE static typename V::F mac(typename V::F sum, Operand x, Operand w) { return V::fma(x, w, sum); }

  FDPP_INLINE static void pack(Packed* to, const T* from, int n) { V::store(to, V::load(from, n)); }
  FDPP_INLINE static void pack(Packed* to, const T* from) { V::store(to, V::load(from)); }
};

template <typename V, typename T>
struct LinearKernels {
  using P = Product<V, T>;
  using Packed = typename P::Packed;

  FDPP_INLINE static int64_t padded(int64_t k) { return (k + P::step - 1) / P::step * P::step; }

  static int64_t packed_x_bytes(const LinearParams& p) {
    return p.M * padded(p.K) * static_cast<int64_t>(sizeof(Packed));
  }

  static void pack_x(const LinearParams& p) {
    for (int64_t m = 0; m < p.M; ++m) {
      const T* from = static_cast<const T*>(p.x) + m * p.x_stride;
      Packed* to = static_cast<Packed*>(p.packed_x) + m * padded(p.K);
      int64_t k = 0;
      for (; k + P::step <= p.K; k += P::step) P::pack(to + k, from + k);
      if (k < p.K) P::pack(to + k, from + k, static_cast<int>(p.K - k));
    }
  }

  // MR rows of x against NR rows of W, over the whole of K, in MR * NR vector accumulators. While it multiplies one tile of
  // NR rows it asks the caches for the next (`ahead` elements further on): the double buffer of a processor.
  template <int MR, int NR, bool Prefetch>
  FDPP_INLINE static void tile(const LinearParams& p, int64_t m, int64_t n) {
    const int64_t ldx = padded(p.K);
    const Packed* x = static_cast<const Packed*>(p.packed_x) + m * ldx;
    const T* w = static_cast<const T*>(p.weight) + n * p.weight_stride;
    const int64_t ahead = NR * p.weight_stride;
    typename V::F sums[MR][NR];
    for (int i = 0; i < MR; ++i) {
      for (int j = 0; j < NR; ++j) sums[i][j] = V::zero();
    }
    const int64_t whole = p.K / P::step * P::step;
    for (int64_t k = 0; k < whole; k += P::step) {
      typename P::Operand weights[NR];
#pragma GCC unroll 8
      for (int j = 0; j < NR; ++j) {
        weights[j] = P::load_weight(w + j * p.weight_stride + k);
        if (Prefetch) __builtin_prefetch(w + j * p.weight_stride + k + ahead, 0, 3);
      }
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) {
        const auto value = P::load_x(x + i * ldx + k);
#pragma GCC unroll 8
        for (int j = 0; j < NR; ++j) sums[i][j] = P::mac(sums[i][j], value, weights[j]);
      }
    }
    if (whole < p.K) {
      for (int j = 0; j < NR; ++j) {
        const auto weights = P::load_weight(w + j * p.weight_stride + whole, static_cast<int>(p.K - whole));
        for (int i = 0; i < MR; ++i) sums[i][j] = P::mac(sums[i][j], P::load_x(x + i * ldx + whole), weights);
      }
    }
    const T* bias = static_cast<const T*>(p.bias);
    for (int i = 0; i < MR; ++i) {
      T* out = static_cast<T*>(p.out) + (m + i) * p.N + n;
      for (int j = 0; j < NR; ++j) {
        const float sum = V::sum(sums[i][j]);
        out[j] = from_float<T>(bias != nullptr ? sum + to_float(bias[n + j]) : sum);
      }
    }
  }

  template <int NR, int MR = 8>
  FDPP_INLINE static void tile_of(int rows, const LinearParams& p, int64_t m, int64_t n) {
    if constexpr (MR > 0) {
      if (rows == MR) return m == 0 ? tile<MR, NR, true>(p, m, n) : tile<MR, NR, false>(p, m, n);
      tile_of<NR, MR - 1>(rows, p, m, n);
    }
  }

  // All rows of x, in equal blocks of at most `most` rows, against NR rows of W.
  template <int NR>
  static void all_rows(const LinearParams& p, int most, int64_t n) {
    const int64_t blocks = (p.M + most - 1) / most;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t begin = p.M * block / blocks, end = p.M * (block + 1) / blocks;
      tile_of<NR>(static_cast<int>(end - begin), p, begin, n);
    }
  }

  static void gemv(const LinearParams& p, int64_t begin, int64_t end) {
    int64_t n = begin;
    for (; n + kGemvColumns <= end; n += kGemvColumns) {
      for (int64_t m = 0; m < p.M; ++m) tile<1, kGemvColumns, false>(p, m, n);
    }
    for (; n < end; ++n) {
      for (int64_t m = 0; m < p.M; ++m) tile<1, 1, false>(p, m, n);
    }
  }

  template <int Config>
  static void flat_gemm_with(const LinearParams& p, int64_t begin, int64_t end) {
    constexpr FlatGemmConfig config = kFlatGemmConfigs[Config];
    int64_t n = begin;
    for (; n + config.columns <= end; n += config.columns) all_rows<config.columns>(p, config.rows, n);
    for (; n < end; ++n) all_rows<1>(p, config.rows, n);
  }

  template <int Config = 0>
  static void flat_gemm(const LinearParams& p, int config, int64_t begin, int64_t end) {
    if constexpr (Config < kNumFlatGemmConfigs) {
      if (config == Config) return flat_gemm_with<Config>(p, begin, end);
      flat_gemm<Config + 1>(p, config, begin, end);
    }
  }
};

}  // namespace fdpp::cpu
