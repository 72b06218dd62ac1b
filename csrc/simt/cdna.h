// The twin of csrc/hip/cdna.h.
#pragma once

#include "gpu/attention_tiles.h"
#include "gpu/fragments_wave64.h"
#include "gpu/linear_tiles.h"
#include "simt/policy.h"

namespace fdpp::simt {

struct Cdna : Host<64> {
  template <typename T>
  using Fragments = FragmentsWave64<Cdna, T>;
  static constexpr AttentionTiles attention_tiles(int head_dim, int tile) { return register_tiles(head_dim, tile); }
  static constexpr FlatTile flat_tile(int padded_m, int tile) { return register_flat_tile(padded_m, tile); }
  static constexpr GemvTile kGemvTile{4, 2, 4};

  // "AMD Instinct MI300 Instruction Set Architecture", "Matrix Arithmetic Instructions": V_MFMA_F32_16X16X16_F16 and
  // V_MFMA_F32_16X16X16_BF16 (layouts: AMD Matrix Instruction Calculator). Element e of lane l is, of A, row l % 16 and
  // column 4 (l / 16) + e; of B, row 4 (l / 16) + e and column l % 16; and so of C.
  template <typename T>
  static void multiply(float (&c)[4], Bytes8 a, Bytes8 b, Where where = Where::current()) {
    struct Operand {
      float* c;
      Bytes8 a, b;
    } operand{c, a, b};
    const auto run = [](Operand* const* lanes) {
      Matrix<16> a, b, c;
      for (int i = 0; i < 64; ++i) {
        for (int e = 0; e < 4; ++e) {
          const int depth = i / 16 * 4 + e;
          a.x[i % 16][depth] = element<T>(lanes[i]->a.words[e / 2], e % 2);
          b.x[depth][i % 16] = element<T>(lanes[i]->b.words[e / 2], e % 2);
          c.x[depth][i % 16] = lanes[i]->c[e];
        }
      }
      multiply_add(c, a, b);
      for (int i = 0; i < 64; ++i) {
        for (int e = 0; e < 4; ++e) lanes[i]->c[e] = c.x[i / 16 * 4 + e][i % 16];
      }
    };
    meet("multiply", operand, run, where);
  }
};

}  // namespace fdpp::simt
