// The policy of AMD's gfx11 GPUs in waves of 32 (gpu/fragments_wave32.h).
#pragma once

#include "hip/amd.h"

#include "gpu/attention_tiles.h"
#include "gpu/fragments_wave32.h"
#include "gpu/linear_tiles.h"

namespace fdpp::hip {

struct Rdna : Amd<32> {
#ifdef __GFX11__
  static constexpr bool kRunsHere = true;
#else
  static constexpr bool kRunsHere = false;
#endif

  template <typename T>
  using Fragments = FragmentsWave32<Rdna, T>;
  static constexpr AttentionTiles attention_tiles(int head_dim, int tile) { return register_tiles(head_dim, tile); }
  static constexpr FlatTile flat_tile(int padded_m, int tile) { return register_flat_tile(padded_m, tile); }
  static constexpr GemvTile kGemvTile{4, 2, 4};

  // "RDNA3 Instruction Set Architecture", "Wave Matrix Multiply Accumulate": V_WMMA_F32_16X16X16_F16 and ..._BF16.
  template <typename T>
  __device__ __forceinline__ static void multiply(float (&c)[8], const uint32_t (&a)[8], const uint32_t (&b)[8]) {
    using Floats = float __attribute__((ext_vector_type(8)));
    using Words = uint32_t __attribute__((ext_vector_type(8)));
    Floats sum;
    Words left, right;
    for (int i = 0; i < 8; ++i) {
      sum[i] = c[i];
      left[i] = a[i];
      right[i] = b[i];
    }
    if constexpr (__is_same(T, f16)) {
      using Halves = _Float16 __attribute__((ext_vector_type(16)));
      sum = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(__builtin_bit_cast(Halves, left),
                                                       __builtin_bit_cast(Halves, right), sum);
    } else {
      using Shorts = short __attribute__((ext_vector_type(16)));
      sum = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(__builtin_bit_cast(Shorts, left),
                                                        __builtin_bit_cast(Shorts, right), sum);
    }
    for (int i = 0; i < 8; ++i) c[i] = sum[i];
  }
};

}  // namespace fdpp::hip
