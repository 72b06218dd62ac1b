// ImplB: y = x W^T for few rows of x, with the weights as the 16-row operand of the matrix unit and x, padded to
// kPaddedM rows only, as the other (FlashDecoding++, section 4). Arch is an architecture (arch.h), T the dtype,
// kVariant one of its tiles.
//
// The warps of a block walk the slices of K of its share (flat_plan.h) in turn, each through shared memory of its own
// (weight_stream.h), on over the ends of tiles: the next tile's weights are on their way while one is finished
// (tile_sums.h).
#pragma once

#include "gpu/tile_sums.h"
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
  struct Place {
    static constexpr int kInputs = Fragment::kInputs, kOutputs = Fragment::kOutputs;
    FDPP_INLINE static int row(int lane, int value) { return Fragment::output_row(lane, value); }
    FDPP_INLINE static int column(int lane, int value) { return Fragment::output_column(lane, value); }
  };
  using Tile = TileSums<Arch, T, kRows, kPaddedM, kWarps, Place>;
  using Sums = typename Tile::Values;
  static constexpr int kStreamBytes = kWarps * Stream::kBytes;

 public:
  static constexpr int kThreads = kWarps * Arch::kWarpSize;
  static constexpr int kMinBlocksPerSM = kTile.blocks;
  static constexpr int kSharedBytes = kStreamBytes + Tile::kBytes;
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

    float* const shared = reinterpret_cast<float*>(Arch::shared_memory() + kStreamBytes);
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
        Tile::finish(params, {0, p.N}, work, tile, sums, shared);
        Tile::zero(sums);
        ++tile;
        tile_end += static_cast<int>(work.steps_per_tile);
      }
    }
  }

 private:
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
};

}  // namespace fdpp
