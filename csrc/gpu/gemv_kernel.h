// ImplA: y = x W^T by dot products on the vector units, for a few rows of x (FlashDecoding++, section 5). Arch is an
// architecture (arch.h), T the dtype, kRows the rows of x that a block takes.
//
// A warp has kOutputs rows of the weight, or shares them with a team of warps that take turns along K: with few rows of
// the weight, teams keep enough loads on their way. Weights pass the caches, x stays in them. The block shape is data.
#pragma once

#include "gpu/linear_epilogue.h"
#include "gpu/linear_tiles.h"

namespace fdpp {

template <typename Arch, typename T, int kRows>
class Gemv {
  static constexpr GemvTile kTile = Arch::kGemvTile;
  static constexpr int kOutputs = kTile.outputs, kWarps = kTile.warps;
  static_assert(kTile.outputs % 2 == 0 && (kWarps & (kWarps - 1)) == 0,
                "gate and up in one warp; teams that divide a block");
  using Sums = float[kOutputs][kRows];

 public:
  using Policy = Arch;
  static constexpr int kThreads = kWarps * Arch::kWarpSize;
  static constexpr int kMinBlocksPerSM = kRows == 1 ? 4 : 2;
  static constexpr int kSharedBytes = kWarps * static_cast<int>(sizeof(Sums));

  // Rows of x beyond kRows get blocks of their own.
  static int64_t grid(const GemvParams& p) {
    const int64_t outputs = (kWarps >> p.team_log2) * kOutputs;
    return (p.linear.N + outputs - 1) / outputs * ((p.linear.M + kRows - 1) / kRows);
  }

  FDPP_DEVICE static void run(const GemvParams& params) {
    const LinearParams& p = params.linear;
    const int warp = Arch::thread_index() / Arch::kWarpSize, lane = Arch::thread_index() % Arch::kWarpSize;
    const int team = 1 << params.team_log2, teams = kWarps >> params.team_log2;
    const int row_tiles = static_cast<int>((p.M + kRows - 1) / kRows);
    const int block = row_tiles == 1 ? Arch::block_index() : Arch::block_index() / row_tiles;
    const int64_t m = int64_t{Arch::block_index() - block * row_tiles} * kRows;
    const int64_t first = int64_t{block} * teams * kOutputs;
    const int chunk = (warp & (team - 1)) * Arch::kWarpSize + lane;
    const int64_t chunks = (p.K + kChunk - 1) / kChunk;
    Operands operands{};
    operands.step = team * Arch::kWarpSize * kChunk;
    operands.left =
        chunk < chunks ? static_cast<int>((chunks - 1 - chunk) >> params.team_log2) / Arch::kWarpSize + 1 : 0;
    for (int i = 0; i < kOutputs; ++i) {
      const int64_t n = first + (warp >> params.team_log2) * kOutputs + i;
      operands.weight[i] = static_cast<const T*>(p.weight) + (n < p.N ? n : 0) * p.weight_stride + chunk * kChunk;
    }
    for (int i = 0; i < kRows; ++i) {
      operands.x[i] = static_cast<const T*>(p.x) + (m + i < p.M ? m + i : m) * p.x_stride + chunk * kChunk;
    }
    const bool whole =
        p.K % kChunk == 0 && is_aligned16<T>(p.weight, p.weight_stride) && is_aligned16<T>(p.x, p.x_stride);
    if (whole) prefetch(operands);
    Arch::wait_for_producers();
    Arch::launch_dependents();

    Sums sums = {};
    if (whole) {
      for (; operands.left >= kTile.unroll; operands.left -= kTile.unroll) add_chunks<kTile.unroll>(operands, sums);
      FDPP_UNROLL_BY(1)
      for (; operands.left > 0; --operands.left) add_chunks<1>(operands, sums);
    } else {
      add_elements(operands, p.K - chunk * kChunk, sums);
    }
    float* const shared = reinterpret_cast<float*>(Arch::shared_memory());
    FDPP_UNROLL
    for (int i = 0; i < kOutputs; ++i) {
      FDPP_UNROLL
      for (int row = 0; row < kRows; ++row) {
        float sum = sums[i][row];
        FDPP_UNROLL
        for (int mask = 1; mask < Arch::kWarpSize; mask *= 2) sum += Arch::shuffle_xor(sum, mask);
        if (lane == 0) Arch::shared_store(shared + (warp * kOutputs + i) * kRows + row, sum);
      }
    }
    Arch::barrier();
    const int per_column = rows_per_column(p), columns = teams * kOutputs / per_column;
    for (int i = Arch::thread_index(); i < columns * kRows; i += kThreads) {
      const int row = i / columns, output = i % columns * per_column;
      if (m + row >= p.M || first + output >= p.N) continue;
      store_output<Arch>(p, static_cast<const T*>(p.bias), m + row, (first + output) / per_column, [&](int j) {
        const int leader = (output + j) / kOutputs * team, mine = (output + j) % kOutputs;
        float sum = 0.0f;
        for (int member = 0; member < team; ++member) {
          sum += Arch::shared_load(shared + ((leader + member) * kOutputs + mine) * kRows + row);
        }
        return sum;
      });
    }
  }

 private:
  // What a lane multiplies: chunks that are `step` elements apart.
  struct Operands {
    const T* weight[kOutputs];  // its next chunk of each row
    const T* x[kRows];
    int step;
    int left;  // chunks
  };

  // Hints at the first weights, which may be called for before anything may be read.
  FDPP_INLINE static void prefetch(const Operands& operands) {
    for (int u = 0; u < kTile.unroll && u < operands.left; ++u) {
      for (int i = 0; i < kOutputs; ++i) Arch::prefetch(operands.weight[i] + u * operands.step);
    }
  }

  FDPP_INLINE static void advance(Operands& operands) {
    for (int i = 0; i < kOutputs; ++i) operands.weight[i] += operands.step;
    for (int i = 0; i < kRows; ++i) operands.x[i] += operands.step;
  }

  template <int kCount>
  FDPP_INLINE static void add_chunks(Operands& operands, Sums& sums) {
    Bytes16 weights[kCount][kOutputs], inputs[kCount][kRows];  // all on their way before the first is used
    FDPP_UNROLL
    for (int u = 0; u < kCount; ++u) {
      for (int i = 0; i < kOutputs; ++i) weights[u][i] = Arch::stream_load(operands.weight[i]);
      for (int i = 0; i < kRows; ++i) inputs[u][i] = Arch::load16(operands.x[i]);
      advance(operands);
    }
    FDPP_UNROLL
    for (int u = 0; u < kCount; ++u) {
      float w[kOutputs][kChunk], x[kChunk];
      for (int i = 0; i < kOutputs; ++i) unpack_chunk<Arch, T>(w[i], weights[u][i]);
      FDPP_UNROLL
      for (int row = 0; row < kRows; ++row) {
        unpack_chunk<Arch, T>(x, inputs[u][row]);
        add(sums, row, w, x);
      }
    }
  }

  // Rows that 16-byte accesses cannot have; `elements` of them are left.
  FDPP_INLINE static void add_elements(Operands& operands, int64_t elements, Sums& sums) {
    FDPP_UNROLL_BY(1)
    for (; operands.left > 0; --operands.left) {
      float w[kOutputs][kChunk], x[kChunk];
      for (int i = 0; i < kOutputs; ++i) load_chunk<Arch>(w[i], operands.weight[i], elements, false);
      FDPP_UNROLL
      for (int row = 0; row < kRows; ++row) {
        load_chunk<Arch>(x, operands.x[row], elements, false);
        add(sums, row, w, x);
      }
      advance(operands);
      elements -= operands.step;
    }
  }

  FDPP_INLINE static void add(Sums& sums, int row, const float (&w)[kOutputs][kChunk], const float (&x)[kChunk]) {
    for (int i = 0; i < kOutputs; ++i) {
      for (int k = 0; k < kChunk; ++k) sums[i][row] += w[i][k] * x[k];
    }
  }
};

}  // namespace fdpp
