// The flat GEMM on AMX: weights are the 16 rows of the left tile exactly as they lie in memory, activations are the
// columns of the right one, so M is padded to 16 and the weights are never repacked.
//
// One step multiplies 32 rows of W (two left tiles) by 32 rows of x (two right tiles) over 32 elements of K:
//
//     C[n][m] += sum_k W[n][k] * X[k][m]
//
// The right tile has 16 rows of pairs: row k / 2 holds x[m][k], x[m][k + 1] for each m
// (Intel 64 and IA-32 Architectures SDM, TDPBF16PS).
//
// `Tiles` gives the instructions: AmxTiles on hardware, a model of them in tests/cpp.
#pragma once

#include "common/params.h"
#include "cpu/kernels.h"

namespace fdpp::cpu {

constexpr int kTileRows = 16;    // rows of a tile
constexpr int kTileK = 32;       // bfloat16 elements in a row of a tile
constexpr int kTileFloats = 16;  // float32 elements in a row of a tile

// Fills `to` [16][32] with a block of W, zeros beyond its `rows` and `columns`.
FDPP_INLINE void copy_edge(bf16* to, const bf16* from, int64_t stride, int64_t rows, int64_t columns) {
  for (int r = 0; r < kTileRows; ++r) {
    for (int k = 0; k < kTileK; ++k) to[r * kTileK + k] = r < rows && k < columns ? from[r * stride + k] : bf16{0};
  }
}

template <typename Tiles>
struct AmxLinear {
  FDPP_INLINE static int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

  // Right tiles in the order in which they are used: [M / 16][K / 32][16][16][2].
  static int64_t packed_x_bytes(const LinearParams& p) {
    return blocks(p.M, kTileFloats) * blocks(p.K, kTileK) * kTileRows * kTileK * static_cast<int64_t>(sizeof(bf16));
  }

  static void pack_x(const LinearParams& p) {
    const bf16* x = static_cast<const bf16*>(p.x);
    bf16* to = static_cast<bf16*>(p.packed_x);
    for (int64_t m0 = 0; m0 < p.M; m0 += kTileFloats) {
      for (int64_t k0 = 0; k0 < p.K; k0 += kTileK) {
        for (int64_t k = k0; k < k0 + kTileK; k += 2) {
          for (int64_t m = m0; m < m0 + kTileFloats; ++m) {
            for (int64_t pair = 0; pair < 2; ++pair) {
              *to++ = m < p.M && k + pair < p.K ? x[m * p.x_stride + k + pair] : bf16{0};
            }
          }
        }
      }
    }
  }

  // Output columns [begin, end).
  static void flat_gemm(const LinearParams& p, int64_t begin, int64_t end) {
    Tiles::configure();
    for (int64_t n = begin; n < end; n += 2 * kTileRows) {
      for (int64_t m = 0; m < p.M; m += 2 * kTileFloats) block(p, n, end, m);
    }
    Tiles::release();
  }

 private:
  // Tiles 0..3: C[n half][m half]; 4, 5: weights; 6, 7: activations. A half that lies outside is not touched.
  static void block(const LinearParams& p, int64_t n, int64_t end, int64_t m) {
    const bool second_n = n + kTileRows < end, second_m = m + kTileFloats < p.M;
    const int64_t k_blocks = blocks(p.K, kTileK);
    const bf16* x = static_cast<const bf16*>(p.packed_x) + m / kTileFloats * k_blocks * kTileRows * kTileK;
    Tiles::template zero<0>();
    Tiles::template zero<1>();
    Tiles::template zero<2>();
    Tiles::template zero<3>();
    for (int64_t kb = 0; kb < k_blocks; ++kb) {
      load_weights<4>(p, n, end, kb * kTileK);
      Tiles::template load<6>(x + kb * kTileRows * kTileK, kTileK);
      Tiles::template multiply<0, 4, 6>();
      if (second_m) {
        Tiles::template load<7>(x + (k_blocks + kb) * kTileRows * kTileK, kTileK);
        Tiles::template multiply<1, 4, 7>();
      }
      if (second_n) {
        load_weights<5>(p, n + kTileRows, end, kb * kTileK);
        Tiles::template multiply<2, 5, 6>();
        if (second_m) Tiles::template multiply<3, 5, 7>();
      }
    }
    write<0>(p, n, end, m);
    if (second_m) write<1>(p, n, end, m + kTileFloats);
    if (second_n) write<2>(p, n + kTileRows, end, m);
    if (second_n && second_m) write<3>(p, n + kTileRows, end, m + kTileFloats);
  }

  template <int Tile>
  static void load_weights(const LinearParams& p, int64_t n, int64_t end, int64_t k) {
    const bf16* w = static_cast<const bf16*>(p.weight) + n * p.weight_stride + k;
    if (n + kTileRows <= end && k + kTileK <= p.K) {
      // The next tiles of the same rows: four steps of K ahead.
      for (int r = 0; r < kTileRows; ++r) __builtin_prefetch(w + r * p.weight_stride + 4 * kTileK);
      Tiles::template load<Tile>(w, p.weight_stride);
      return;
    }
    alignas(64) bf16 edge[kTileRows * kTileK];
    copy_edge(edge, w, p.weight_stride, end - n, p.K - k);
    Tiles::template load<Tile>(edge, kTileK);
  }

  template <int Tile>
  static void write(const LinearParams& p, int64_t n, int64_t end, int64_t m) {
    alignas(64) float c[kTileRows * kTileFloats];
    Tiles::template store<Tile>(c);
    const bf16* bias = static_cast<const bf16*>(p.bias);
    bf16* out = static_cast<bf16*>(p.out);
    for (int64_t j = 0; j < kTileFloats && m + j < p.M; ++j) {
      for (int64_t i = 0; i < kTileRows && n + i < end; ++i) {
        const float sum = c[i * kTileFloats + j];
        out[(m + j) * p.N + n + i] = from_float<bf16>(bias != nullptr ? sum + to_float(bias[n + i]) : sum);
      }
    }
  }
};

}  // namespace fdpp::cpu
