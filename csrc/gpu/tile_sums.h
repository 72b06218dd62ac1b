// The end of a tile of a linear layer: the warps of a block add up what each has of it, and, where blocks share the
// tile, the last of them to arrive adds up theirs; always in the same order. Then the sums become outputs.
#pragma once

#include "gpu/flat_plan.h"
#include "gpu/linear_epilogue.h"

namespace fdpp {

// Rows of the weight that a launch multiplies with.
struct RowRange {
  int64_t first, count;
};

// Place says where the values of a lane lie: kOutputs of them in a fragment of 16 rows of the weight by kInputs of x,
// value v of them in row(lane, v) and column(lane, v).
template <typename Arch, typename T, int kRows, int kPaddedM, int kWarps, typename Place>
class TileSums {
  static constexpr int kStride = kPaddedM + 1;  // between rows of the weight in shared memory: odd, for its banks
  static constexpr int kWarpFloats = kRows * kStride, kTileFloats = kRows * kPaddedM;
  static constexpr int kThreads = kWarps * Arch::kWarpSize;

 public:
  static constexpr int kBytes = (kWarps * kWarpFloats + 4) * static_cast<int>(sizeof(float));  // of shared memory
  using Values = float[kRows / kFragment][kPaddedM / Place::kInputs][Place::kOutputs];

  FDPP_INLINE static void zero(Values& values) {
    FDPP_UNROLL
    for (int i = 0; i < static_cast<int>(sizeof(Values) / sizeof(float)); ++i) (&values[0][0][0])[i] = 0.0f;
  }

  // The end of a tile, or of the block's part of it.
  FDPP_OUTLINE static void finish(const FlatGemmParams& params, const RowRange& range, const FlatWork& work,
                                  int64_t tile, const Values& values, float* shared) {
    const int lane = Arch::thread_index() % Arch::kWarpSize, warp = Arch::thread_index() / Arch::kWarpSize;
    Arch::barrier();  // the sums of the tile before have been read
    FDPP_UNROLL
    for (int i = 0; i < kRows / kFragment; ++i) {
      FDPP_UNROLL
      for (int j = 0; j < kPaddedM / Place::kInputs; ++j) {
        FDPP_UNROLL
        for (int v = 0; v < Place::kOutputs; ++v) {
          const int row = i * kFragment + Place::row(lane, v), column = j * Place::kInputs + Place::column(lane, v);
          Arch::shared_store(shared + warp * kWarpFloats + row * kStride + column, values[i][j][v]);
        }
      }
    }
    Arch::barrier();
    const auto of_warps = [&](int row, int column) {
      float sum = 0.0f;
      FDPP_UNROLL
      for (int w = 0; w < kWarps; ++w) sum += Arch::shared_load(shared + w * kWarpFloats + row * kStride + column);
      return sum;
    };
    if (params.partial == nullptr) return store(params.linear, range, work, tile, of_warps);
    const int64_t first = work.block_of(tile * work.steps_per_tile, params.blocks);
    const int64_t last = work.block_of((tile + 1) * work.steps_per_tile - 1, params.blocks);
    if (first == last) return store(params.linear, range, work, tile, of_warps);

    // A block has up to two tiles that it shares: one that it ends, and one that it begins.
    const auto partial = [&](int64_t block) {
      return params.partial + (2 * block + (block == first ? 1 : 0)) * kTileFloats;
    };
    float* const mine = partial(Arch::block_index());
    for (int i = Arch::thread_index(); i < kTileFloats; i += kThreads) mine[i] = of_warps(i % kRows, i / kRows);
    Arch::publish();
    Arch::barrier();
    int* const is_last = reinterpret_cast<int*>(shared + kWarps * kWarpFloats);
    if (Arch::thread_index() == 0) {
      Arch::shared_store(is_last, int{Arch::arrive(params.arrivals + tile, static_cast<int>(last - first + 1))});
    }
    Arch::barrier();
    if (Arch::shared_load(is_last) == 0) return;
    store(params.linear, range, work, tile, [&](int row, int column) {
      float sum = 0.0f;
      for (int64_t block = first; block <= last; ++block)
        sum += Arch::coherent_load(partial(block) + column * kRows + row);
      return sum;
    });
  }

 private:
  template <typename Sum>
  FDPP_INLINE static void store(const LinearParams& p, const RowRange& range, const FlatWork& work, int64_t tile,
                                const Sum& sum) {
    const int64_t n = tile / work.row_tiles * kRows, m = tile % work.row_tiles * kPaddedM;
    const int per_column = rows_per_column(p), columns = kRows / per_column;
    const int rows = static_cast<int>(p.M - m < kPaddedM ? p.M - m : kPaddedM);
    for (int i = Arch::thread_index(); i < rows * columns; i += kThreads) {
      const int row = i / columns, output = i % columns * per_column;
      if (n + output >= range.count) continue;
      store_output<Arch>(p, static_cast<const T*>(p.bias), m + row, (range.first + n + output) / per_column,
                         [&](int j) { return sum(output + j, row); });
    }
  }
};

}  // namespace fdpp
