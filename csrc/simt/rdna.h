// The twin of csrc/hip/rdna.h.
#pragma once

#include "gpu/attention_tiles.h"
#include "gpu/fragments_wave32.h"
#include "gpu/linear_tiles.h"
#include "simt/policy.h"

namespace fdpp::simt {

struct Rdna : Host<32> {
  template <typename T>
  using Fragments = FragmentsWave32<Rdna, T>;
  static constexpr AttentionTiles attention_tiles(int head_dim, int tile) { return register_tiles(head_dim, tile); }
  static constexpr FlatTile flat_tile(int padded_m, int tile) { return register_flat_tile(padded_m, tile); }
  static constexpr GemvTile kGemvTile{4, 2, 4};

  // "RDNA3 Instruction Set Architecture", "Wave Matrix Multiply Accumulate": V_WMMA_F32_16X16X16_F16 and ..._BF16.
  // Element e of lane l is, of A, row l % 16 and column e; of B, row e and column l % 16; of C, row 2 e + l / 16 and
  // column l % 16. Lanes 16 to 31 must hold the same of A and B as lanes 0 to 15.
  template <typename T>
  static void multiply(float (&c)[8], const uint32_t (&a)[8], const uint32_t (&b)[8], Where where = Where::current()) {
    struct Operand {
      float* c;
      const uint32_t *a, *b;
    } operand{c, a, b};
    const auto run = [](Operand* const* lanes) {
      Matrix<16> a, b, c;
      for (int i = 0; i < 16; ++i) {
        const Operand &lane = *lanes[i], &twin = *lanes[i + 16];
        if (std::memcmp(lane.a, twin.a, sizeof(uint32_t[8])) != 0 ||
            std::memcmp(lane.b, twin.b, sizeof(uint32_t[8])) != 0) {
          fail("multiply: the operands of lanes %d and %d differ", i, i + 16);
        }
        for (int e = 0; e < 16; ++e) {
          a.x[i][e] = element<T>(lane.a[e / 2], e % 2);
          b.x[e][i] = element<T>(lane.b[e / 2], e % 2);
          c.x[e][i] = lanes[e % 2 * 16 + i]->c[e / 2];
        }
      }
      multiply_add(c, a, b);
      for (int i = 0; i < 32; ++i) {
        for (int e = 0; e < 8; ++e) lanes[i]->c[e] = c.x[2 * e + i / 16][i % 16];
      }
    };
    meet("multiply", operand, run, where);
  }
};

}  // namespace fdpp::simt
