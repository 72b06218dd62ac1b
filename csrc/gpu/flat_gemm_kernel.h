// ImplB: y = x W^T for few rows of x, with the weights as the 16-row operand of the matrix unit and x, padded to
// kPaddedM rows only, as the other (FlashDecoding++, section 4). Arch is an architecture (arch.h), T the dtype,
// kVariant one of its tiles.
//
// The warps of a block walk the slices of K of its share (flat_plan.h) in turn, each through shared memory of its own
// (weight_stream.h), on over the ends of tiles: the next tile's weights are on their way while one is finished. At the
// end of a tile they add up their sums, and, where blocks share it, the last block to arrive adds up theirs; always in
// the same order.
#pragma once

#include "gpu/flat_plan.h"
#include "gpu/linear_epilogue.h"
#include "gpu/weight_stream.h"

namespace fdpp {

template <typename Arch, typename T, int kPaddedM, int kVariant>
class FlatGemm {
 public:
  using Policy = Arch;
  static constexpr FlatTile kTile = Arch::flat_tile(kPaddedM, kVariant);
  static_assert(kTile.rows > 0);

 private:
  static constexpr int kWarps = kTile.warps, kStages = kTile.stages, kRows = kTile.rows;
  using Fragment = typename Arch::template Fragments<T>;
  using Stream = WeightStream<Arch, T, kPaddedM, kTile>;
  static constexpr int kRowFragments = kRows / kFragment, kColumnFragments = kPaddedM / Fragment::kInputs;
  static_assert(kPaddedM % Fragment::kInputs == 0);
  using Sums = float[kRowFragments][kColumnFragments][Fragment::kOutputs];
  static constexpr int kSumStride = kPaddedM + 1;  // between rows of the weight in shared memory: odd, for its banks
  static constexpr int kSumFloats = kRows * kSumStride;
  static constexpr int kTileFloats = kRows * kPaddedM;
  static constexpr int kStreamBytes = kWarps * Stream::kBytes;

 public:
  static constexpr int kThreads = kWarps * Arch::kWarpSize;
  static constexpr int kMinBlocksPerSM = kTile.blocks;
  static constexpr int kSharedBytes = kStreamBytes + (kWarps * kSumFloats + 4) * static_cast<int>(sizeof(float));
  static_assert(kSharedBytes <= kTile.shared_limit);

  static int64_t grid(const FlatGemmParams& p) { return p.blocks; }

  FDPP_DEVICE static void run(const FlatGemmParams& params) {
    const LinearParams& p = params.linear;
    constexpr FlatTile tile_shape =
        kTile;  // as a value of its own: not every compiler folds a member that is passed on
    const FlatWork work = flat_work(p.N, p.K, p.M, kPaddedM, tile_shape);
    const int64_t begin = work.begin(Arch::block_index(), params.blocks),
                  end = work.begin(Arch::block_index() + 1, params.blocks);
    const int warp = Arch::thread_index() / Arch::kWarpSize;
    const int steps = static_cast<int>(end - begin);
    Stream stream(p, work, Arch::shared_memory() + warp * Stream::kBytes, begin, steps);
    stream.prefetch(kStages - 1);
    Arch::wait_for_producers();
    FDPP_UNROLL_BY(1)
    for (int stage = 0; stage < kStages - 1; ++stage) stream.fetch(stage);
    Arch::launch_dependents();

    Sums sums = {};
    int64_t tile = begin / work.steps_per_tile;
    int tile_end = static_cast<int>((tile + 1) * work.steps_per_tile - begin);
    int stage = 0;
    for (int step = 1; step <= steps; ++step) {
      stream.fetch((stage + kStages - 1) % kStages);
      Arch::template copy_wait<kStages - 1>();
      Arch::warp_sync();
      multiply(sums, stream.weights(stage), stream.inputs(stage));
      Arch::warp_sync();
      stage = (stage + 1) % kStages;
      if (step == tile_end || step == steps) {
        finish(params, work, tile, sums);
        zero(sums);
        ++tile;
        tile_end += static_cast<int>(work.steps_per_tile);
      }
    }
  }

 private:
  FDPP_INLINE static void zero(Sums& sums) {
    FDPP_UNROLL
    for (int i = 0; i < kRowFragments * kColumnFragments * Fragment::kOutputs; ++i) (&sums[0][0][0])[i] = 0.0f;
  }

  FDPP_INLINE static void multiply(Sums& sums, const T* weights, const T* inputs) {
    FDPP_UNROLL
    for (int k = 0; k < kTile.depth; k += kFragment) {
      typename Fragment::Weights w[kRowFragments];
      FDPP_UNROLL
      for (int i = 0; i < kRowFragments; ++i) {
        w[i] = Fragment::load_weights(weights + i * kFragment * Stream::kStride + k, Stream::kStride);
      }
      FDPP_UNROLL
      for (int j = 0; j < kColumnFragments; ++j) {
        const auto x = Fragment::load_inputs(inputs + j * Fragment::kInputs * Stream::kStride + k, Stream::kStride);
        FDPP_UNROLL
        for (int i = 0; i < kRowFragments; ++i) Fragment::multiply_linear(sums[i][j], w[i], x);
      }
    }
  }

  // The end of a tile, or of the block's part of it.
  FDPP_INLINE static void finish(const FlatGemmParams& params, const FlatWork& work, int64_t tile, const Sums& sums) {
    float* const shared = reinterpret_cast<float*>(Arch::shared_memory() + kStreamBytes);
    const int lane = Arch::thread_index() % Arch::kWarpSize, warp = Arch::thread_index() / Arch::kWarpSize;
    Arch::barrier();  // the sums of the tile before have been read
    FDPP_UNROLL
    for (int i = 0; i < kRowFragments; ++i) {
      FDPP_UNROLL
      for (int j = 0; j < kColumnFragments; ++j) {
        FDPP_UNROLL
        for (int v = 0; v < Fragment::kOutputs; ++v) {
          const int row = i * kFragment + Fragment::output_row(lane, v);
          const int column = j * Fragment::kInputs + Fragment::output_column(lane, v);
          Arch::shared_store(shared + warp * kSumFloats + row * kSumStride + column, sums[i][j][v]);
        }
      }
    }
    Arch::barrier();
    const auto of_warps = [&](int row, int column) {
      float sum = 0.0f;
      FDPP_UNROLL
      for (int w = 0; w < kWarps; ++w) sum += Arch::shared_load(shared + w * kSumFloats + row * kSumStride + column);
      return sum;
    };
    if (params.partial == nullptr) return store(params.linear, work, tile, of_warps);
    const int64_t first = work.block_of(tile * work.steps_per_tile, params.blocks);
    const int64_t last = work.block_of((tile + 1) * work.steps_per_tile - 1, params.blocks);
    if (first == last) return store(params.linear, work, tile, of_warps);

    // A block has up to two tiles that it shares: one that it ends, and one that it begins.
    const auto partial = [&](int64_t block) {
      return params.partial + (2 * block + (block == first ? 1 : 0)) * kTileFloats;
    };
    float* const mine = partial(Arch::block_index());
    for (int i = Arch::thread_index(); i < kTileFloats; i += kThreads) mine[i] = of_warps(i % kRows, i / kRows);
    Arch::publish();
    Arch::barrier();
    int* const is_last = reinterpret_cast<int*>(shared + kWarps * kSumFloats);
    if (Arch::thread_index() == 0) {
      Arch::shared_store(is_last, int{Arch::arrive(params.arrivals + tile, static_cast<int>(last - first + 1))});
    }
    Arch::barrier();
    if (Arch::shared_load(is_last) == 0) return;
    store(params.linear, work, tile, [&](int row, int column) {
      float sum = 0.0f;
      for (int64_t block = first; block <= last; ++block)
        sum += Arch::coherent_load(partial(block) + column * kRows + row);
      return sum;
    });
  }

  template <typename Sum>
  FDPP_INLINE static void store(const LinearParams& p, const FlatWork& work, int64_t tile, const Sum& sum) {
    const int64_t n = tile / work.row_tiles * kRows, m = tile % work.row_tiles * kPaddedM;
    const int per_column = rows_per_column(p), columns = kRows / per_column;
    const int rows = static_cast<int>(p.M - m < kPaddedM ? p.M - m : kPaddedM);
    for (int i = Arch::thread_index(); i < rows * columns; i += kThreads) {
      const int row = i / columns, output = i % columns * per_column;
      if (n + output >= p.N) continue;
      store_output<Arch>(p, static_cast<const T*>(p.bias), m + row, (n + output) / per_column,
                         [&](int j) { return sum(output + j, row); });
    }
  }
};

}  // namespace fdpp
