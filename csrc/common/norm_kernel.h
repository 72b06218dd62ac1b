// rms_norm and add_rms_norm (Zhang and Sennrich, arXiv 1910.07467) on a GPU: a block per row. P is an architecture (arch.h), T
// the dtype, R that of the residual. The norm is that of the sum before it is rounded to R, which may have no room for it.
#pragma once

#include <math.h>

#include "common/chunks.h"
#include "common/params.h"

namespace fdpp {

template <typename P, typename T, typename R>
class RmsNorm {
  static constexpr int kWarps = 256 / P::kWarpSize;

 public:
  using Policy = P;
  static constexpr int kThreads = kWarps * P::kWarpSize;
  static constexpr int kBlocks = 1;
  static constexpr int kSharedBytes = kWarps * static_cast<int>(sizeof(float));

  static int64_t blocks(const NormParams& p) { return p.rows; }

  FDPP_DEVICE static void run(const NormParams& p) {
    P::wait_for_producers();
    P::launch_dependents();
    const int64_t row = P::block_index();
    const T* const x = static_cast<const T*>(p.x) + row / p.inner * p.outer_stride + row % p.inner * p.inner_stride;
    const T* const weight = static_cast<const T*>(p.weight);
    T* const out = static_cast<T*>(p.out) + row * p.width;
    R* const residual = p.residual != nullptr ? static_cast<R*>(p.residual) + row * p.width : nullptr;
    const bool whole = p.width % kChunk == 0 && is_whole<T>(x, 0) && is_whole<T>(weight, 0) && is_whole<R>(residual, 0);

    float squares = 0.0f;
    for (int64_t i = int64_t{P::thread_index()} * kChunk; i < p.width; i += kThreads * kChunk) {
      float values[kChunk];
      load_normed(values, x, residual, i, p.width, whole);
      for (int k = 0; k < kChunk; ++k) squares += values[k] * values[k];
    }
    const float scale = 1.0f / sqrtf(sum_of_block(squares) / static_cast<float>(p.width) + p.eps);

    for (int64_t i = int64_t{P::thread_index()} * kChunk; i < p.width; i += kThreads * kChunk) {
      float values[kChunk], factors[kChunk];
      load_normed(values, x, residual, i, p.width, whole);
      if (residual != nullptr) store_chunk<P>(residual + i, values, p.width - i, whole);
      load_chunk<P>(factors, weight + i, p.width - i, whole);
      for (int k = 0; k < kChunk; ++k) values[k] = values[k] * scale * factors[k];
      store_chunk<P>(out + i, values, p.width - i, whole);
    }
  }

 private:
  // A chunk of x, or of its sum with the residual.
  FDPP_INLINE static void load_normed(float (&values)[kChunk], const T* x, const R* residual, int64_t i, int64_t width,
                                      bool whole) {
    load_chunk<P>(values, x + i, width - i, whole);
    if (residual == nullptr) return;
    float before[kChunk];
    load_chunk<P>(before, residual + i, width - i, whole);
    for (int k = 0; k < kChunk; ++k) values[k] += before[k];
  }

  FDPP_INLINE static float sum_of_block(float x) {
    float* const shared = reinterpret_cast<float*>(P::shared_memory());
    FDPP_UNROLL
    for (int mask = 1; mask < P::kWarpSize; mask *= 2) x += P::shuffle_xor(x, mask);
    if (P::thread_index() % P::kWarpSize == 0) P::shared_store(shared + P::thread_index() / P::kWarpSize, x);
    P::barrier();
    float sum = 0.0f;
    for (int warp = 0; warp < kWarps; ++warp) sum += P::shared_load(shared + warp);
    return sum;
  }
};

}  // namespace fdpp
