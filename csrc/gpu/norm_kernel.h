// RMS norm (Zhang and Sennrich, arXiv 1910.07467) and layer norm (Ba et al., arXiv 1607.06450) of a row, or of its sum
// with a residual, on a GPU: a block per row. Arch is an architecture (arch.h), T the dtype, R that of the residual.
// The norm is that of the sum before it is rounded to R, which may have no room for it.
#pragma once

#include <math.h>

#include "common/params.h"
#include "gpu/chunks.h"

namespace fdpp {

// A token is one row and its kernel waits for memory only: whatever fits is asked for at once and stays in registers.
// kCentered: a layer norm.
template <typename Arch, typename T, typename R, int kWidth, bool kCentered>
class Norm {
  static constexpr int kHeld = 2;  // chunks of a lane that stay in registers; wider rows are read twice

 public:
  using Policy = Arch;
  static constexpr int kThreads = kWidth / kChunk;
  static constexpr int kMinBlocksPerSM = 1;
  static constexpr int kWarps = kThreads / Arch::kWarpSize;
  static constexpr int kSharedBytes = (kCentered ? 2 : 1) * kWarps * static_cast<int>(sizeof(float));

  static int64_t grid(const NormParams& p) { return p.rows; }

  FDPP_DEVICE static void run(const NormParams& p) {
    const int64_t row = Arch::block_index(), first = int64_t{Arch::thread_index()} * kChunk;
    const T* const x = static_cast<const T*>(p.x) + row / p.inner * p.outer_stride + row % p.inner * p.inner_stride;
    const T *const weight = static_cast<const T*>(p.weight), *const bias = static_cast<const T*>(p.bias);
    T* const out = static_cast<T*>(p.out) + row * p.width;
    R* const residual = p.residual != nullptr ? static_cast<R*>(p.residual) + row * p.width : nullptr;
    const bool whole = p.width % kChunk == 0 && is_aligned16<T>(x, 0) && is_aligned16<T>(weight, 0) &&
                       is_aligned16<T>(bias, 0) && is_aligned16<R>(residual, 0);
    Arch::wait_for_producers();
    Arch::launch_dependents();

    float held[kHeld][kChunk] = {}, before[kHeld][kChunk] = {}, factors[kHeld][kChunk] = {}, shifts[kHeld][kChunk] = {};
    FDPP_UNROLL
    for (int c = 0; c < kHeld; ++c) {
      const int64_t i = first + c * kWidth;
      if (i >= p.width) break;
      load_chunk<Arch>(held[c], x + i, p.width - i, whole);
      if (residual != nullptr) load_chunk<Arch>(before[c], residual + i, p.width - i, whole);
      load_chunk<Arch>(factors[c], weight + i, p.width - i, whole);
      if (kCentered && bias != nullptr) load_chunk<Arch>(shifts[c], bias + i, p.width - i, whole);
    }
    float total = 0.0f;
    FDPP_UNROLL
    for (int c = 0; c < kHeld; ++c) {
      const int64_t i = first + c * kWidth;
      for (int k = 0; k < kChunk; ++k) held[c][k] += before[c][k];
      if (residual != nullptr && i < p.width) store_chunk<Arch>(residual + i, held[c], p.width - i, whole);
      if (kCentered) total += sum(held[c]);
    }
    if (kCentered) {
      for (int64_t i = first + kHeld * kWidth; i < p.width; i += kWidth) {
        float values[kChunk];
        load_normed(values, x, residual, i, p.width, whole);
        total += sum(values);
      }
    }
    const float width = static_cast<float>(p.width), mean = kCentered ? sum_of_block(total, 0) / width : 0.0f;
    float squares = 0.0f;
    FDPP_UNROLL
    for (int c = 0; c < kHeld; ++c) squares += squares_about(mean, held[c], p.width - first - c * kWidth);
    for (int64_t i = first + kHeld * kWidth; i < p.width; i += kWidth) {
      float values[kChunk];
      load_normed(values, x, residual, i, p.width, whole);
      squares += squares_about(mean, values, p.width - i);
    }
    const float scale = 1.0f / sqrtf(sum_of_block(squares, kCentered ? kWarps : 0) / width + p.eps);

    FDPP_UNROLL
    for (int c = 0; c < kHeld; ++c) {
      const int64_t i = first + c * kWidth;
      if (i < p.width) store(out + i, held[c], mean, scale, factors[c], shifts[c], p.width - i, whole);
    }
    for (int64_t i = first + kHeld * kWidth; i < p.width; i += kWidth) {
      float values[kChunk], weights[kChunk], biases[kChunk] = {};
      load_normed(values, x, residual, i, p.width, whole);
      if (residual != nullptr) store_chunk<Arch>(residual + i, values, p.width - i, whole);
      load_chunk<Arch>(weights, weight + i, p.width - i, whole);
      if (kCentered && bias != nullptr) load_chunk<Arch>(biases, bias + i, p.width - i, whole);
      store(out + i, values, mean, scale, weights, biases, p.width - i, whole);
    }
  }

 private:
  FDPP_INLINE static void store(T* out, float (&values)[kChunk], float mean, float scale,
                                const float (&factors)[kChunk], const float (&shifts)[kChunk], int64_t count,
                                bool whole) {
    for (int k = 0; k < kChunk; ++k) {
      values[k] = (values[k] - mean) * scale * factors[k];
      if (kCentered) values[k] += shifts[k];
    }
    store_chunk<Arch>(out, values, count, whole);
  }

  // A chunk of x, or of its sum with the residual.
  FDPP_INLINE static void load_normed(float (&values)[kChunk], const T* x, const R* residual, int64_t i, int64_t width,
                                      bool whole) {
    load_chunk<Arch>(values, x + i, width - i, whole);
    if (residual == nullptr) return;
    float before[kChunk];
    load_chunk<Arch>(before, residual + i, width - i, whole);
    for (int k = 0; k < kChunk; ++k) values[k] += before[k];
  }

  FDPP_INLINE static float sum(const float (&values)[kChunk]) {
    float sum = 0.0f;
    for (int k = 0; k < kChunk; ++k) sum += values[k];
    return sum;
  }

  // The first `count` values count.
  FDPP_INLINE static float squares_about(float mean, const float (&values)[kChunk], int64_t count) {
    float squares = 0.0f;
    for (int k = 0; k < kChunk; ++k) {
      const float deviation = kCentered && k >= count ? 0.0f : values[k] - mean;
      squares += deviation * deviation;
    }
    return squares;
  }

  // Each sum of a kernel has floats of its own, from `first` on.
  FDPP_INLINE static float sum_of_block(float x, int first) {
    float* const shared = reinterpret_cast<float*>(Arch::shared_memory()) + first;
    FDPP_UNROLL
    for (int mask = 1; mask < Arch::kWarpSize; mask *= 2) x += Arch::shuffle_xor(x, mask);
    if (Arch::thread_index() % Arch::kWarpSize == 0)
      Arch::shared_store(shared + Arch::thread_index() / Arch::kWarpSize, x);
    Arch::barrier();
    float sum = 0.0f;
    for (int warp = 0; warp < kWarps; ++warp) sum += Arch::shared_load(shared + warp);
    return sum;
  }
};

}  // namespace fdpp
