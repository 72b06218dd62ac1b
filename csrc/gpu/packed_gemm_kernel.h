// ImplB for packed weights (common/weight_format.h): y = x W^T for few rows of x, with the panels of the weight as the
// 16-row operand of the matrix unit, straight from memory (direct_gemm_kernel.h). Arch is an architecture (arch.h), T
// the dtype of x, kFormat the number of a WeightFormat.
//
// Sums of a group, of integer codes times x, are exact but for the order of their float32 additions; then the group's
// scale multiplies them. Where there are minimums, ones take the place of a weight once more: they multiply the sums of
// x. Warps and blocks share the work as in flat_gemm_kernel.h; a step is as many groups as registers have room for.
#pragma once

#include "gpu/packed_group.h"
#include "gpu/tile_sums.h"

namespace fdpp {

template <typename Fragment>
struct PackedPlace {
  static constexpr int kInputs = Fragment::kInputs, kOutputs = Fragment::kOutputs;
  FDPP_INLINE static int row(int lane, int value) { return Fragment::sum_row(lane) + value / Fragment::kSumsOfRow; }
  FDPP_INLINE static int column(int lane, int value) { return Fragment::output_column(lane, value); }
};

template <typename Arch, typename T, int kPaddedM, int kFormat>
class PackedGemm {
  using Group = PackedGroup<Arch, T, static_cast<WeightFormat>(kFormat)>;
  using Fragment = typename Group::Fragment;

 public:
  using Policy = Arch;
  static constexpr FlatTile kTile = Group::tile(kPaddedM);

 private:
  static constexpr int kWarps = kTile.warps, kRing = kPackedRing, kGroups = kTile.depth / kGroup;
  static constexpr int kPanels = kTile.rows / kPanelRows, kColumnFragments = kPaddedM / Fragment::kInputs;
  static constexpr int kAhead = kTile.stages - kRing;  // steps from a slice to the one that is hinted at
  static constexpr int kRunGroups = Group::kInfo.groups, kHeaders = kRunGroups > 1 ? 1 : kGroups;
  static constexpr int64_t kRunBytes = Group::kInfo.run_bytes();
  static constexpr int kHeaderBytes = static_cast<int>(Group::kInfo.header_bytes()),
                       kGroupBytes = static_cast<int>(Group::kInfo.group_bytes());
  static_assert(kRunGroups == 1 || kRunGroups % kGroups == 0, "a step lies in one run");
  using Tile = TileSums<Arch, T, kTile.rows, kPaddedM, kWarps, PackedPlace<Fragment>>;
  using Sums = typename Tile::Values;
  struct Slice {  // of K, of the panels of a tile
    typename Group::Header headers[kPanels][kHeaders];
    Group groups[kPanels][kGroups];
  };

 public:
  static constexpr int kThreads = kWarps * Arch::kWarpSize;
  static constexpr int kMinBlocksPerSM = kTile.blocks;
  static constexpr int kSharedBytes = Tile::kBytes;
  static_assert(kSharedBytes <= kTile.shared_limit);

  static int64_t grid(const PackedGemmParams& p) { return p.flat.blocks; }

  FDPP_DEVICE static void run(const PackedGemmParams& params) {
    const LinearParams& p = params.flat.linear;
    constexpr FlatTile tile_shape =
        kTile;  // as a value of its own: not every compiler folds a member that is passed on
    const FlatWork work = flat_work(params.rows, p.K, p.M, kPaddedM, tile_shape);
    const int64_t begin = work.begin(Arch::block_index(), params.flat.blocks),
                  end = work.begin(Arch::block_index() + 1, params.flat.blocks);
    const int steps = static_cast<int>(end - begin);
    int tile = static_cast<int>(begin / work.steps_per_tile);
    Stream stream(params, work, tile, static_cast<int>(begin - tile * work.steps_per_tile));
    Inputs inputs(p, work, tile, stream.step);
    stream.prefetch_first();
    Arch::wait_for_producers();

    float* const shared = reinterpret_cast<float*>(Arch::shared_memory());
    Slice ring[kRing];
    FDPP_UNROLL
    for (int stage = 0; stage < kRing; ++stage) {
      if (stage < steps) stream.load(ring[stage]);
    }
    Arch::launch_dependents();
    Sums sums = {};
    for (int step = 0; step < steps; step += kRing) {
      FDPP_UNROLL
      for (int stage = 0; stage < kRing; ++stage) {
        if (step + stage >= steps) break;
        multiply(sums, inputs, ring[stage]);
        if (step + stage + kRing < steps) stream.load(ring[stage]);
        if (++inputs.step == stream.steps_per_tile || step + stage + 1 == steps) {
          Tile::finish(params.flat, {params.first_row, params.rows}, work, tile, sums, shared);
          Tile::zero(sums);
          inputs.begin_tile(++tile);
        }
      }
    }
  }

 private:
  FDPP_INLINE static int lane() { return Arch::thread_index() % Arch::kWarpSize; }

  // The groups of a warp in a step, from `first` on. Those of the last step of a tile may begin sooner, lest they end
  // beyond K: groups before `wanted` are those of another warp, then.
  struct Groups {
    int wanted, first;
    FDPP_INLINE Groups(int step, int groups)
        : wanted((step * kWarps + Arch::thread_index() / Arch::kWarpSize) * kGroups),
          first(wanted < groups - kGroups ? wanted : groups - kGroups) {}
  };

  // The panels on their way. Beyond the last one it has that one: nobody stores those sums.
  struct Stream {
    const PackedGemmParams& params;
    const FlatWork& work;
    const uint8_t* panels[kPanels];
    const uint8_t *hints, *end;
    int tile, step, groups, steps_per_tile;
    bool is_hinting;

    FDPP_INLINE Stream(const PackedGemmParams& p, const FlatWork& w, int first_tile, int first_step)
        : params(p),
          work(w),
          tile(first_tile),
          step(first_step),
          groups(static_cast<int>(p.flat.linear.K / kGroup)),
          steps_per_tile(static_cast<int>(w.steps_per_tile)) {
      begin_tile();
    }

    FDPP_INLINE void begin_tile() {
      constexpr int kLine = 128, kBytes = kGroups * kGroupBytes + kHeaders * kHeaderBytes, kLanes = 16;
      static_assert(kBytes <= kLanes * kLine && kPanels * kLanes <= Arch::kWarpSize);
      const int last = static_cast<int>((params.rows - 1) / kPanelRows), rows = static_cast<int>(work.row_tiles);
      const int64_t panel_bytes = groups / kRunGroups * kRunBytes;
      const uint8_t* const weight = static_cast<const uint8_t*>(params.flat.linear.weight);
      end = weight + (last + 1) * panel_bytes;
      FDPP_UNROLL
      for (int i = 0; i < kPanels; ++i) {
        const int panel = tile / rows * kPanels + i;
        panels[i] = weight + (panel < last ? panel : last) * panel_bytes;
      }
      const int line = lane() % kLanes * kLine;
      hints = (lane() < kLanes ? panels[0] : panels[kPanels - 1]) + line;
      is_hinting = line < kBytes && lane() < kPanels * kLanes;
    }

    // Hints at the lines from so many bytes after the beginning of panels on, each half of a warp at those of one.
    // Where a panel ends, the next one begins.
    FDPP_INLINE void prefetch(int offset) const {
      if (is_hinting && hints + offset < end) Arch::prefetch(hints + offset);
    }

    // The first steps, which may be called for before anything may be read.
    FDPP_INLINE void prefetch_first() const {
      FDPP_UNROLL_BY(1)
      for (int i = 0; i < kAhead; ++i) prefetch(run_offset(Groups(step + i, groups).first));
    }

    // Starts the loads of the step, and moves on.
    FDPP_INLINE void load(Slice& slice) {
      const int first = Groups(step, groups).first, offset = run_offset(first);
      const int in_run = first % kRunGroups * kGroupBytes;
      FDPP_UNROLL
      for (int i = 0; i < kPanels; ++i) {
        const uint8_t *const run = panels[i] + offset, *const own = run + in_run;
        FDPP_UNROLL
        for (int j = 0; j < kGroups; ++j) {
          if (j < kHeaders) Group::load_header(slice.headers[i][j], run + j * kBetween, lane());
          slice.groups[i][j].load(own + kHeaderBytes + j * kBetween, lane());
        }
      }
      prefetch(offset + in_run + kAhead * kWarps * kGroups * kBetween);
      if (++step == steps_per_tile) {
        step = 0;
        ++tile;
        begin_tile();
      }
    }

   private:
    static constexpr int kBetween = kRunGroups > 1 ? kGroupBytes : static_cast<int>(kRunBytes);  // groups of a slice
    FDPP_INLINE static int run_offset(int group) { return group / kRunGroups * static_cast<int>(kRunBytes); }
  };

  // x for the step that is multiplied. Beyond its last row it is that row: nobody stores those sums, either.
  struct Inputs {
    const LinearParams& p;
    const FlatWork& work;
    const T* x[kColumnFragments];
    int step, groups;

    FDPP_INLINE Inputs(const LinearParams& params, const FlatWork& w, int tile, int first_step)
        : p(params), work(w), groups(static_cast<int>(params.K / kGroup)) {
      begin_tile(tile);
      step = first_step;
    }

    FDPP_INLINE void begin_tile(int tile) {
      const int rows = static_cast<int>(p.M), first = tile % static_cast<int>(work.row_tiles) * kPaddedM;
      FDPP_UNROLL
      for (int j = 0; j < kColumnFragments; ++j) {
        const int m = first + j * Fragment::kInputs + Fragment::input_row(lane());
        x[j] = static_cast<const T*>(p.x) + (m < rows ? m : rows - 1) * p.x_stride + 2 * Group::first_pair(0, lane());
      }
      step = 0;
    }
  };

  FDPP_INLINE static void multiply(Sums& sums, const Inputs& inputs, const Slice& slice) {
    const Groups at(inputs.step, inputs.groups);
    FDPP_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      if (at.first + g < at.wanted) continue;
      typename Group::Codes codes[kPanels];
      typename Group::Factors scales[kPanels], mins[kPanels];
      FDPP_UNROLL
      for (int i = 0; i < kPanels; ++i) {
        const auto& header = slice.headers[i][g < kHeaders ? g : 0];
        slice.groups[i][g].unpack(header, lane(), codes[i]);
        slice.groups[i][g].factors(header, scales[i], mins[i]);
      }
      FDPP_UNROLL
      for (int j = 0; j < kColumnFragments; ++j) {
        FDPP_UNROLL
        for (int half = 0; half < Group::kHalves; ++half) {
          uint32_t pairs[Group::kPairs];
          load_pairs(pairs, inputs.x[j] + (at.first + g) * kGroup + half * (kGroup / 2));
          float sums_of_x[Fragment::kOutputs];
          if constexpr (Group::kInfo.has_min) {
            uint32_t ones[Fragment::kCodeRows][Group::kPairs];
            FDPP_UNROLL
            for (int i = 0; i < Fragment::kCodeRows * Group::kPairs; ++i) (&ones[0][0])[i] = kOnes;
            Fragment::multiply_pairs(sums_of_x, ones, pairs);
          }
          FDPP_UNROLL
          for (int i = 0; i < kPanels; ++i) {
            float product[Fragment::kOutputs];
            Fragment::multiply_pairs(product, codes[i][half], pairs);
            FDPP_UNROLL
            for (int v = 0; v < Fragment::kOutputs; ++v) {
              const int row = v / Fragment::kSumsOfRow;
              sums[i][j][v] += scales[i][half][row] * product[v];
              if constexpr (Group::kInfo.has_min) sums[i][j][v] += mins[i][half][row] * sums_of_x[v];
            }
          }
        }
      }
    }
  }

  static constexpr uint32_t kOnes = __is_same(T, f16) ? 0x3c003c00 : 0x3f803f80;

  // Pairs that lie side by side, aligned to as many bytes.
  template <int kPairs>
  FDPP_INLINE static void load_pairs(uint32_t (&pairs)[kPairs], const T* from) {
    if constexpr (kPairs == 2) {
      const auto bytes = Arch::template load_word<Bytes8>(from);
      pairs[0] = bytes.words[0], pairs[1] = bytes.words[1];
    } else {
      FDPP_UNROLL
      for (int i = 0; i < kPairs; i += 4) {
        const Bytes16 bytes = Arch::load16(from + 2 * i);
        FDPP_UNROLL
        for (int j = 0; j < 4; ++j) pairs[i + j] = bytes.words[j];
      }
    }
  }
};

}  // namespace fdpp
