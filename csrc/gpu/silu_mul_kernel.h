// silu_mul (SwiGLU: Shazeer, arXiv 2002.05202) on a GPU: a chunk of a row per thread. Arch is an architecture (arch.h),
// T the dtype.
#pragma once

#include "common/activation.h"
#include "common/params.h"
#include "gpu/chunks.h"

namespace fdpp {

template <typename Arch, typename T>
class SiluMul {
 public:
  using Policy = Arch;
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocksPerSM = 1;
  static constexpr int kSharedBytes = 0;

  static int64_t grid(const SiluMulParams& p) { return (p.rows * chunks(p) + kThreads - 1) / kThreads; }

  FDPP_DEVICE static void run(const SiluMulParams& p) {
    Arch::wait_for_producers();
    Arch::launch_dependents();
    const int64_t index = int64_t{Arch::block_index()} * kThreads + Arch::thread_index();
    const int64_t row = index / chunks(p), i = index % chunks(p) * kChunk, left = p.width - i;
    if (row >= p.rows) return;
    const T* const from =
        static_cast<const T*>(p.gate_up) + row / p.inner * p.outer_stride + row % p.inner * p.inner_stride;
    T* const out = static_cast<T*>(p.out) + row * p.width;
    const bool whole = p.width % kChunk == 0 && is_aligned16<T>(from, 0);
    float gate[kChunk], up[kChunk];
    load_chunk<Arch>(gate, from + i, left, whole);
    load_chunk<Arch>(up, from + p.width + i, left, whole);
    for (int k = 0; k < kChunk; ++k) gate[k] = silu<Scalar<Arch>>(gate[k]) * up[k];
    store_chunk<Arch>(out + i, gate, left, whole);
  }

 private:
  FDPP_INLINE static int64_t chunks(const SiluMulParams& p) { return (p.width + kChunk - 1) / kChunk; }
};

}  // namespace fdpp
