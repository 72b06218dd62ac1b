// How the work of a flat GEMM is shared among blocks, and which tile and how many blocks a shape gets: pure functions.
//
// The work is a sequence of steps, one slice of K of one tile after another, tile by tile; block b of G has the steps
// [b T / G, (b + 1) T / G). As many blocks as tiles: each has its own. A multiple: split-K. Any other number, such as
// what the device runs at a time: every block has the same share, wherever that begins ("Stream-K", arXiv 2301.03598).
// Blocks that share a tile leave their sums to the last of them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/dataflow.h"
#include "common/params.h"
#include "gpu/linear_tiles.h"

namespace fdpp {

// Tiles of one launch, those of the same rows of the weight next to each other; and their steps.
struct FlatWork {
  int64_t row_tiles, tiles, steps_per_tile;

  FDPP_INLINE int64_t steps() const { return tiles * steps_per_tile; }
  FDPP_INLINE int64_t begin(int64_t block, int64_t blocks) const { return block * steps() / blocks; }
  // The block whose share has the step: the largest b with floor(b T / G) <= step.
  FDPP_INLINE int64_t block_of(int64_t step, int64_t blocks) const { return ((step + 1) * blocks - 1) / steps(); }
};

FDPP_INLINE FlatWork flat_work(int64_t N, int64_t K, int64_t M, int padded_m, FlatTile tile) {
  const int64_t row_tiles = (M + padded_m - 1) / padded_m, step = int64_t{tile.depth} * tile.warps;
  const int64_t steps = (K + step - 1) / step;
  return {row_tiles, (N + tile.rows - 1) / tile.rows * row_tiles, steps < 1 ? 1 : steps};
}

// Whether a tile is shared between blocks.
FDPP_INLINE bool shares_tiles(const FlatWork& work, int64_t blocks) { return work.tiles % blocks != 0; }

// Floats of FlatGemmParams::partial.
FDPP_INLINE int64_t flat_partial_floats(int64_t blocks, int padded_m, FlatTile tile) {
  return blocks * 2 * tile.rows * padded_m;
}

// How a tile's work is spread. kOneBlockPerTile: a block for each tile. kBalanced: equal shares for what the device
// runs at a time. n > 1: n blocks for each tile.
constexpr int kOneBlockPerTile = 1, kBalanced = 0;
constexpr int kSpreads[] = {kOneBlockPerTile, kBalanced, 2, 4, 8};
constexpr int kNumSpreads = sizeof(kSpreads) / sizeof(kSpreads[0]);
constexpr int kOneWave = 1;  // the index of kBalanced
// A configuration of flat_gemm names a tile and a spread: kNumSpreads for each tile.
FDPP_INLINE int flat_config(int tile, int spread_index) { return tile * kNumSpreads + spread_index; }

// Blocks of a direct tile share rows and not K: kBalanced is one wave, n is n waves.
inline int64_t direct_blocks(int64_t N, int spread, int64_t resident_blocks) {
  return std::clamp<int64_t>(resident_blocks * std::max(spread, 1), 1, std::max<int64_t>((N + 1) / 2, 1));
}

// More blocks than steps would leave some without any.
inline int64_t flat_blocks(const FlatWork& work, int spread, int64_t resident_blocks) {
  const int64_t wanted = spread == kBalanced ? std::max<int64_t>(resident_blocks, 1) : work.tiles * spread;
  return std::clamp<int64_t>(wanted, 1, work.steps());
}

// The index of the spread with the fewest blocks that keep half of the multiprocessors busy.
inline int least_spread(int64_t tiles, int multiprocessors) {
  int best = 0;
  for (int i = 0; i < kNumSpreads; ++i) {
    if (kSpreads[i] != kBalanced && tiles * kSpreads[best] * 2 < multiprocessors) best = i;
  }
  return best;
}

// What the plan knows of a machine.
struct FlatMachine {
  int multiprocessors;
  double bandwidth;          // bytes per second; 0: unknown
  int resident[kFlatTiles];  // blocks of each tile that run on a multiprocessor at a time; 0: the tile does not fit

  // Where it is unknown: that of current data-centre parts.
  double bandwidth_of_one() const { return bandwidth > 0.0 ? bandwidth / multiprocessors : 3e10; }
};

// The time of a launch, in bytes that one multiprocessor could have streamed meanwhile. An element of the weight has
// `weight_bytes`.
//
// FlashDecoding++, section 4: a row of a tile moves K elements of the weight, M results, and M K / BN of x. The last
// come from the L2, whose rate is about half as much again as that of memory: they cost something only in narrow tiles.
// N / BN blocks are what runs in parallel. Multiprocessors that run a last wave alone draw up to twice their share of
// the bandwidth. What is on its way to a multiprocessor has to cover its bandwidth times the latency of loaded memory
// (Little's law), some 1.2 us. Tiles shared between blocks cost writing and reading their sums, and the two dependent
// trips to memory until the last block has them, some 2 us.
inline double flat_cost(int64_t K, int64_t M, const FlatTile& tile, int resident, const FlatWork& work, int64_t blocks,
                        int padded_m, const FlatMachine& machine, double weight_bytes = 2.0) {
  constexpr double kElement = 2.0, kCacheRate = 1.5, kLoneRate = 2.0, kLatency = 1.2e-6, kSharing = 2e-6;
  const double rows = tile.rows, k = static_cast<double>(K), m = static_cast<double>(std::min<int64_t>(M, padded_m));
  const double own = rows * (weight_bytes * k + kElement * m),
               tile_bytes = std::max(own, (own + kElement * m * k) / kCacheRate);
  const double share = tile_bytes * static_cast<double>(work.tiles) / static_cast<double>(blocks);
  const double waves = static_cast<double>(blocks) / machine.multiprocessors;
  const double full = static_cast<double>(static_cast<int64_t>(waves)), rest = waves - full;
  const double streamed = share * (full + (rest > 0.0 ? std::max(rest, 1.0 / kLoneRate) : 0.0));

  const double running = std::min(static_cast<double>(resident), rest > 0.0 ? full + 1.0 : full);
  const int stages = tile.direct ? tile.stages : std::max(tile.stages - 1, 1);
  const double on_their_way = running * weight_bytes * rows * tile.depth * tile.warps * stages;
  const double bandwidth = machine.bandwidth_of_one();
  const double time = streamed * std::max(1.0, kLatency * bandwidth / on_their_way);
  if (!shares_tiles(work, blocks)) return time;
  return time + kSharing * bandwidth + 2.0 * sizeof(float) * rows * m;
}

// Where there are direct tiles, what won on an H200 (bench/results): the direct one where each block has at least one
// tile of rows, the large one where N is smaller. Elsewhere the cheapest configuration of flat_cost.
inline int plan_flat_gemm(int64_t N, int64_t K, int64_t M, int padded_m, const FlatTile (&tiles)[kFlatTiles],
                          const FlatMachine& machine) {
  if (const int64_t blocks = int64_t{machine.multiprocessors} * machine.resident[kDirectTile]; blocks > 0) {
    const FlatTile& large = tiles[kLargeTile];
    const bool fills = N >= blocks * tiles[kDirectTile].rows || machine.resident[kLargeTile] == 0;
    if (fills) return flat_config(kDirectTile, kOneWave);
    return flat_config(kLargeTile, least_spread(flat_work(N, K, M, padded_m, large).tiles, machine.multiprocessors));
  }
  int best = 0;
  double least = -1.0;
  for (int tile = 0; tile < kFlatTiles; ++tile) {
    const int resident = machine.resident[tile];
    if (resident == 0) continue;
    const FlatWork work = flat_work(N, K, M, padded_m, tiles[tile]);
    for (int i = 0; i < kNumSpreads; ++i) {
      const int64_t blocks = flat_blocks(work, kSpreads[i], int64_t{machine.multiprocessors} * resident);
      const double cost = flat_cost(K, M, tiles[tile], resident, work, blocks, padded_m, machine);
      if (least < 0.0 || cost < least) {
        least = cost;
        best = flat_config(tile, i);
      }
    }
  }
  return best;
}

// The spread of a packed weight's tile (packed_gemm_kernel.h).
inline int plan_packed_gemm(int64_t N, int64_t K, int64_t M, int padded_m, const FlatTile& tile, int resident,
                            const FlatMachine& machine, double weight_bytes) {
  const FlatWork work = flat_work(N, K, M, padded_m, tile);
  int best = 0;
  double least = -1.0;
  for (int i = 0; i < kNumSpreads; ++i) {
    const int64_t blocks = flat_blocks(work, kSpreads[i], int64_t{machine.multiprocessors} * resident);
    const double cost = flat_cost(K, M, tile, resident, work, blocks, padded_m, machine, weight_bytes);
    if (least < 0.0 || cost < least) {
      least = cost;
      best = i;
    }
  }
  return best;
}

// One tile, one padded M and one spread for all M make a row's sums independent of the rows around it: the slices of K
// and their order are then the same. kBalanced is none of these spreads, as its shares begin where the
// number of tiles says.
constexpr int kBatchInvariantPaddedM = 16;

inline Choice gpu_batch_invariant_choice(const LinearTiles& tiles, int multiprocessors, DType dtype, int64_t N,
                                         int64_t K, int format = kPlain) {
  if (dtype == DType::f32) return {Impl::aten, -1, Source::batch_invariant};
  constexpr int kTile = 0;
  const FlatTile tile = format == kPlain ? tiles.of(kBatchInvariantPaddedM)[kTile]
                                         : tiles.packed_of(kBatchInvariantPaddedM, static_cast<WeightFormat>(format));
  const int spread = least_spread(flat_work(N, K, 1, kBatchInvariantPaddedM, tile).tiles, multiprocessors);
  return {Impl::flat_gemm, format == kPlain ? flat_config(kTile, spread) : spread, Source::batch_invariant};
}

}  // namespace fdpp
