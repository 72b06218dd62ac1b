// What becomes of the sums of a linear layer on a GPU before they are rounded: bias, activation, gate, residual.
#pragma once

#include "common/activation.h"
#include "common/params.h"
#include "gpu/chunks.h"

namespace fdpp {

// Rows of the weight that one column of the output takes.
FDPP_INLINE int rows_per_column(const LinearParams& p) { return p.gated ? 2 : 1; }

// One element of the output. `sum(i)` is that of the i-th of its rows of the weight.
template <typename Arch, typename T, typename Sum>
FDPP_INLINE void store_output(const LinearParams& p, const T* bias, int64_t m, int64_t column, const Sum& sum) {
  const auto biased = [&](int i) {
    return sum(i) + (bias != nullptr ? widen<Arch>(bias[rows_per_column(p) * column + i]) : 0.0f);
  };
  float y = activate<Scalar<Arch>>(p.activation, biased(0));
  if (p.gated) y *= biased(1);
  const int64_t at = m * out_columns(p) + column;
  if (p.out_dtype == DType::f32) {
    const float* const residual = static_cast<const float*>(p.residual);
    static_cast<float*>(p.out)[at] = residual[m * p.residual_stride + column] + y;
  } else {
    const T* const residual = static_cast<const T*>(p.residual);
    if (residual != nullptr) y += widen<Arch>(residual[m * p.residual_stride + column]);
    static_cast<T*>(p.out)[at] = narrow<Arch, T>(y);
  }
}

// The epilogue alone, after a GEMM of the vendor's: a thread per element.
template <typename Arch, typename T>
class LinearEpilogue {
 public:
  using Policy = Arch;
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocksPerSM = 1;
  static constexpr int kSharedBytes = 0;

  static int64_t grid(const EpilogueParams& p) {
    return (p.linear.M * out_columns(p.linear) + kThreads - 1) / kThreads;
  }

  FDPP_DEVICE static void run(const EpilogueParams& params) {
    Arch::wait_for_producers();
    Arch::launch_dependents();
    const LinearParams& p = params.linear;
    const int64_t i = int64_t{Arch::block_index()} * kThreads + Arch::thread_index(), m = i / out_columns(p);
    if (m >= p.M) return;
    const int64_t column = i % out_columns(p);
    const T* const product = static_cast<const T*>(params.product) + m * p.N + rows_per_column(p) * column;
    store_output<Arch, T>(p, nullptr, m, column, [&](int j) { return widen<Arch>(product[j]); });
  }
};

}  // namespace fdpp
