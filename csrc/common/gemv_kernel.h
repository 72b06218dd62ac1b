// ImplA: y = x W^T by dot products on the vector units, for a few rows of x (FlashDecoding++, section 5). P is an
// architecture (arch.h), T the dtype, kRows the rows of x that a block takes.
//
// A warp has kOutputs rows of the weight, or shares them with a team of warps that take turns along K: with few rows of the
// weight, teams keep enough loads on their way. Weights pass the caches, x stays in them. The block shape is data.
#pragma once

#include "common/linear_epilogue.h"
#include "common/linear_tiles.h"

namespace fdpp {

constexpr int kGemvRows = 4;  // the most rows of x that share a read of the weight

template <typename P, typename T, int kRows>
class Gemv {
  static constexpr GemvTile kTile = P::kGemvTile;
  static constexpr int kOutputs = kTile.outputs, kWarps = kTile.warps;
  static_assert(kTile.outputs % 2 == 0 && (kWarps & (kWarps - 1)) == 0, "gate and up in one warp; teams that divide a block");
  using Sums = float[kOutputs][kRows];

 public:
  using Policy = P;
  static constexpr int kThreads = kWarps * P::kWarpSize;
  static constexpr int kBlocks = kRows == 1 ? 3 : 2;
  static constexpr int kSharedBytes = kWarps * static_cast<int>(sizeof(Sums));

  // Rows of x beyond kRows get blocks of their own.
  static int64_t blocks(const GemvParams& p) {
    const int64_t outputs = kWarps / p.team * kOutputs;
    return (p.linear.N + outputs - 1) / outputs * ((p.linear.M + kRows - 1) / kRows);
  }

  FDPP_DEVICE static void run(const GemvParams& params) {
    const LinearParams& p = params.linear;
    P::wait_for_producers();
    P::launch_dependents();
    const int warp = P::thread_index() / P::kWarpSize, teams = kWarps / params.team;
    const int row_tiles = static_cast<int>((p.M + kRows - 1) / kRows);
    const int64_t m = int64_t{P::block_index() % row_tiles} * kRows;
    const int64_t first = int64_t{P::block_index() / row_tiles} * teams * kOutputs;
    Operands operands;
    for (int i = 0; i < kOutputs; ++i) {
      const int64_t n = first + warp / params.team * kOutputs + i;
      operands.weight[i] = static_cast<const T*>(p.weight) + (n < p.N ? n : 0) * p.weight_stride;
    }
    for (int i = 0; i < kRows; ++i) {
      operands.x[i] = static_cast<const T*>(p.x) + (m + i < p.M ? m + i : m) * p.x_stride;
    }
    operands.K = p.K;
    operands.chunk = warp % params.team * P::kWarpSize + P::thread_index() % P::kWarpSize;
    operands.stride = params.team * P::kWarpSize;

    Sums sums = {};
    if (p.K % kChunk == 0 && is_whole<T>(p.weight, p.weight_stride) && is_whole<T>(p.x, p.x_stride)) {
      add_products<kTile.unroll, true>(operands, sums);
    } else {
      add_products<1, false>(operands, sums);
    }
    float* const shared = reinterpret_cast<float*>(P::shared_memory());
    FDPP_UNROLL
    for (int i = 0; i < kOutputs; ++i) {
      FDPP_UNROLL
      for (int row = 0; row < kRows; ++row) {
        float sum = sums[i][row];
        FDPP_UNROLL
        for (int mask = 1; mask < P::kWarpSize; mask *= 2) sum += P::shuffle_xor(sum, mask);
        if (P::thread_index() % P::kWarpSize == 0) P::shared_store(shared + (warp * kOutputs + i) * kRows + row, sum);
      }
    }
    P::barrier();
    const int per_column = rows_per_column(p), columns = teams * kOutputs / per_column;
    for (int i = P::thread_index(); i < columns * kRows; i += kThreads) {
      const int row = i / columns, output = i % columns * per_column;
      if (m + row >= p.M || first + output >= p.N) continue;
      store_output<P>(p, static_cast<const T*>(p.bias), m + row, (first + output) / per_column, [&](int j) {
        const int team = (output + j) / kOutputs, mine = (output + j) % kOutputs;
        float sum = 0.0f;
        for (int member = 0; member < params.team; ++member) {
          sum += P::shared_load(shared + ((team * params.team + member) * kOutputs + mine) * kRows + row);
        }
        return sum;
      });
    }
  }

 private:
  struct Operands {
    const T* weight[kOutputs];
    const T* x[kRows];
    int64_t K;
    int64_t chunk, stride;  // this lane's first, and how far it is to its next
  };

  template <int kUnroll, bool kWhole>
  FDPP_INLINE static void add_products(const Operands& operands, Sums& sums) {
    const int64_t chunks = (operands.K + kChunk - 1) / kChunk;
    for (int64_t first = operands.chunk; first < chunks; first += kUnroll * operands.stride) {
      Bytes16 weights[kUnroll][kOutputs];  // all on their way before the first is used
      if constexpr (kWhole) {
        FDPP_UNROLL
        for (int u = 0; u < kUnroll; ++u) {
          const int64_t chunk = first + u * operands.stride;
          FDPP_UNROLL
          for (int i = 0; i < kOutputs; ++i) {
            weights[u][i] = chunk < chunks ? P::stream_load(operands.weight[i] + chunk * kChunk) : Bytes16{};
          }
        }
      }
      FDPP_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t element = (first + u * operands.stride) * kChunk, left = operands.K - element;
        if (left <= 0) break;
        float w[kOutputs][kChunk], x[kChunk];
        FDPP_UNROLL
        for (int i = 0; i < kOutputs; ++i) {
          if constexpr (kWhole) {
            unpack_chunk<P, T>(w[i], weights[u][i]);
          } else {
            load_chunk<P>(w[i], operands.weight[i] + element, left, false);
          }
        }
        FDPP_UNROLL
        for (int row = 0; row < kRows; ++row) {
          load_chunk<P>(x, operands.x[row] + element, left, kWhole);
          FDPP_UNROLL
          for (int i = 0; i < kOutputs; ++i) {
            for (int k = 0; k < kChunk; ++k) sums[i][row] += w[i][k] * x[k];
          }
        }
      }
    }
  }
};

}  // namespace fdpp
