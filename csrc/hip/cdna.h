// The policy of AMD's data-centre GPUs, gfx90a and gfx94x (gpu/fragments_wave64.h).
#pragma once

#include "hip/amd.h"

#include "gpu/attention_tiles.h"
#include "gpu/fragments_wave64.h"
#include "gpu/linear_tiles.h"

namespace fdpp::hip {

struct Cdna : Amd<64> {
#ifdef __GFX9__
  static constexpr bool kRunsHere = true;
#else
  static constexpr bool kRunsHere = false;
#endif

  template <typename T>
  using Fragments = FragmentsWave64<Cdna, T>;
  static constexpr AttentionTiles attention_tiles(int head_dim, int tile) { return register_tiles(head_dim, tile); }
  static constexpr FlatTile flat_tile(int padded_m, int tile) { return register_flat_tile(padded_m, tile); }
  static constexpr GemvTile kGemvTile{4, 2, 4};

  // "AMD Instinct MI300 Instruction Set Architecture", "Matrix Arithmetic Instructions": V_MFMA_F32_16X16X16_F16 and
  // V_MFMA_F32_16X16X16_BF16 (on MI200 ..._BF16_1K).
  template <typename T>
  __device__ __forceinline__ static void multiply(float (&c)[4], Bytes8 a, Bytes8 b) {
    using Floats = float __attribute__((ext_vector_type(4)));
    Floats sum = {c[0], c[1], c[2], c[3]};
    if constexpr (__is_same(T, f16)) {
      using Halves = _Float16 __attribute__((ext_vector_type(4)));
      sum = __builtin_amdgcn_mfma_f32_16x16x16f16(__builtin_bit_cast(Halves, a), __builtin_bit_cast(Halves, b), sum, 0,
                                                  0, 0);
    } else {
      using Shorts = short __attribute__((ext_vector_type(4)));
      sum = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(__builtin_bit_cast(Shorts, a), __builtin_bit_cast(Shorts, b), sum,
                                                      0, 0, 0);
    }
    for (int i = 0; i < 4; ++i) c[i] = sum[i];
  }
};

}  // namespace fdpp::hip
