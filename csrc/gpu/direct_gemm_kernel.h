// ImplB without a stop in shared memory: each lane loads its operands of the matrix unit from memory, 16 bytes at a
// time, into a ring of registers. Arch is an architecture (arch.h), T the dtype, kVariant one of its direct tiles
// (linear_tiles.h).
//
// The rows of the weight are shared equally among the blocks of one wave, whole rows each, so that no block waits for
// another. A block takes its rows in tiles; its warps take turns along K and add up their sums at the end of each tile,
// while the weights of the next one are on their way. x stays in the L1 cache.
#pragma once

#include "gpu/flat_plan.h"
#include "gpu/linear_epilogue.h"

namespace fdpp {

template <typename Arch, typename T, int kPaddedM, int kVariant>
class DirectGemm {
 public:
  using Policy = Arch;
  static constexpr FlatTile kTile = Arch::flat_tile(kPaddedM, kVariant);
  static_assert(kTile.direct);

 private:
  using Fragment = typename Arch::template Fragments<T>;
  static constexpr int kWarps = kTile.warps, kRing = kTile.stages, kRows = kTile.rows;
  static constexpr int kSlice = kTile.depth,
                       kPieces = kSlice / Fragment::kDirectDepth;  // of K that a warp takes at a time
  static constexpr int kRowFragments = kRows / kFragment, kColumnFragments = kPaddedM / Fragment::kInputs;
  static constexpr int kSumStride = kPaddedM + 1;  // between rows of the weight in shared memory: odd, for its banks
  static constexpr int kSumFloats = kRows * kSumStride;
  using Sums = float[kRowFragments][kColumnFragments][Fragment::kOutputs];
  using Weights = Bytes16[kRowFragments][kPieces][2];  // the lane's two rows of each fragment

 public:
  static constexpr int kThreads = kWarps * Arch::kWarpSize;
  static constexpr int kMinBlocksPerSM = kTile.blocks;
  static constexpr int kSharedBytes =
      2 * kWarps * kSumFloats * static_cast<int>(sizeof(float));  // of two tiles in turn
  static_assert(kSharedBytes <= kTile.shared_limit);

  static int64_t grid(const FlatGemmParams& p) { return p.blocks; }

  FDPP_DEVICE static void run(const FlatGemmParams& params) {
    const LinearParams& p = params.linear;
    const Rows rows = rows_of_block(p.N, Arch::block_index(), params.blocks);
    const int warp = Arch::thread_index() / Arch::kWarpSize;
    constexpr FlatTile tile = kTile;  // as a value of its own: not every compiler folds a member that is passed on
    const int steps_per_tile = static_cast<int>(flat_work(p.N, p.K, p.M, kPaddedM, tile).steps_per_tile);
    const int steps = (rows.end - rows.begin + kRows - 1) / kRows * steps_per_tile;
    const bool aligned =
        p.K % kChunk == 0 && is_aligned16<T>(p.weight, p.weight_stride) && is_aligned16<T>(p.x, p.x_stride);
    Place next = first_place(p, rows.begin);
    if (aligned) prefetch(p, next, rows.end);
    Arch::wait_for_producers();

    Weights ring[kRing];
    FDPP_UNROLL
    for (int stage = 0; stage < kRing; ++stage) load(p, next, rows.end, steps_per_tile, aligned, ring[stage]);
    Arch::launch_dependents();
    Sums sums = {};
    int k = first_k(warp), row = rows.begin, left = steps_per_tile, turn = 0;
    for (int step = 0; step < steps; step += kRing) {
      FDPP_UNROLL
      for (int stage = 0; stage < kRing; ++stage) {
        if (step + stage >= steps) break;
        multiply(p, sums, ring[stage], k, aligned);
        load(p, next, rows.end, steps_per_tile, aligned, ring[stage]);
        k += kSlice * kWarps;
        if (--left == 0) {
          finish(p, row, rows.end, sums, turn);
          row += kRows;
          k = first_k(warp);
          left = steps_per_tile;
          turn ^= 1;
        }
      }
    }
  }

 private:
  // Pairs of rows stay together: gate and up of one output.
  struct Rows {
    int begin, end;
  };
  FDPP_INLINE static Rows rows_of_block(int64_t N, int64_t block, int64_t blocks) {
    const int64_t pairs = (N + 1) / 2, end = 2 * (pairs * (block + 1) / blocks);
    return {static_cast<int>(2 * (pairs * block / blocks)), static_cast<int>(end < N ? end : N)};
  }

  // A slice of a tile, as one lane sees it: the tile's first row, the lane's first element of K and where that lies in
  // its first row.
  struct Place {
    const T* weight;
    int row, k, step;
  };
  FDPP_INLINE static int first_k(int warp) {
    return warp * kSlice + Fragment::direct_element(Arch::thread_index() % Arch::kWarpSize);
  }
  FDPP_INLINE static int lane_row() { return Fragment::direct_row(Arch::thread_index() % Arch::kWarpSize); }
  FDPP_INLINE static Place first_place(const LinearParams& p, int row) {
    const int k = first_k(Arch::thread_index() / Arch::kWarpSize);
    return {static_cast<const T*>(p.weight) + (row + lane_row()) * p.weight_stride + k, row, k, 0};
  }

  // Hints at the weights of the first slice, which may be called for before anything may be read.
  FDPP_INLINE static void prefetch(const LinearParams& p, const Place& place, int end) {
    FDPP_UNROLL
    for (int i = 0; i < kRows; i += 8) {
      if (place.row + lane_row() + i < end && place.k < p.K) Arch::prefetch(place.weight + i * p.weight_stride);
    }
  }

  // Starts the loads of the slice at `place`, and moves on. What lies beyond the block's rows and K is zero.
  FDPP_INLINE static void load(const LinearParams& p, Place& place, int end, int steps_per_tile, bool aligned,
                               Weights& weights) {
    FDPP_UNROLL
    for (int f = 0; f < kRowFragments; ++f) {
      FDPP_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = place.row + f * kFragment + half * 8 + lane_row();
        const T* const from = place.weight + (f * kFragment + half * 8) * p.weight_stride;
        FDPP_UNROLL
        for (int piece = 0; piece < kPieces; ++piece) {
          const int offset = piece * Fragment::kDirectDepth;
          const int64_t left = row < end ? p.K - place.k - offset : 0;
          weights[f][piece][half] = left <= 0 ? Bytes16{}
                                    : aligned ? Arch::stream_load(from + offset)
                                              : elements(from + offset, left);
        }
      }
    }
    place.weight += kSlice * kWarps;
    place.k += kSlice * kWarps;
    if (++place.step == steps_per_tile) place = first_place(p, place.row + kRows);
  }

  // A chunk that a 16-byte load cannot have.
  FDPP_INLINE static Bytes16 elements(const T* from, int64_t count) {
    Bytes16 bytes = {};
    for (int i = 0; i < kChunk; ++i) {
      if (i < count) bytes.words[i / 2] |= uint32_t{from[i].bits} << (i % 2 * 16);
    }
    return bytes;
  }

  FDPP_INLINE static void multiply(const LinearParams& p, Sums& sums, const Weights& weights, int k, bool aligned) {
    Bytes16 x[kColumnFragments][kPieces];
    FDPP_UNROLL
    for (int j = 0; j < kColumnFragments; ++j) {
      const int m = j * Fragment::kInputs + lane_row();
      const T* const from = static_cast<const T*>(p.x) + m * p.x_stride + k;
      FDPP_UNROLL
      for (int piece = 0; piece < kPieces; ++piece) {
        const int offset = piece * Fragment::kDirectDepth;
        const int64_t left = m < p.M ? p.K - k - offset : 0;
        x[j][piece] = left <= 0 ? Bytes16{} : aligned ? Arch::load16(from + offset) : elements(from + offset, left);
      }
    }
    FDPP_UNROLL
    for (int piece = 0; piece < kPieces; ++piece) {
      FDPP_UNROLL
      for (int f = 0; f < kRowFragments; ++f) {
        FDPP_UNROLL
        for (int j = 0; j < kColumnFragments; ++j) {
          Fragment::multiply_direct(sums[f][j], weights[f][piece][0], weights[f][piece][1], x[j][piece]);
        }
      }
    }
  }

  // The end of a tile. One barrier: the sums of the tile before lie elsewhere, and whoever stores here has passed its
  // barrier.
  FDPP_INLINE static void finish(const LinearParams& p, int first, int end, Sums& sums, int turn) {
    float* const shared = reinterpret_cast<float*>(Arch::shared_memory()) + turn * kWarps * kSumFloats;
    const int lane = Arch::thread_index() % Arch::kWarpSize, warp = Arch::thread_index() / Arch::kWarpSize;
    FDPP_UNROLL
    for (int f = 0; f < kRowFragments; ++f) {
      FDPP_UNROLL
      for (int j = 0; j < kColumnFragments; ++j) {
        FDPP_UNROLL
        for (int v = 0; v < Fragment::kOutputs; ++v) {
          const int row = f * kFragment + Fragment::output_row(lane, v);
          const int column = j * Fragment::kInputs + Fragment::output_column(lane, v);
          Arch::shared_store(shared + warp * kSumFloats + row * kSumStride + column, sums[f][j][v]);
          sums[f][j][v] = 0.0f;
        }
      }
    }
    Arch::barrier();
    const int per_column = rows_per_column(p), columns = kRows / per_column;
    for (int i = Arch::thread_index(); i < static_cast<int>(p.M) * columns; i += kThreads) {
      const int m = i / columns, output = i % columns * per_column;
      if (first + output >= end) continue;
      store_output<Arch>(p, static_cast<const T*>(p.bias), m, (first + output) / per_column, [&](int j) {
        float sum = 0.0f;
        FDPP_UNROLL
        for (int w = 0; w < kWarps; ++w)
          sum += Arch::shared_load(shared + w * kSumFloats + (output + j) * kSumStride + m);
        return sum;
      });
    }
  }
};

}  // namespace fdpp
