// Which tile an attention launch on a GPU takes and how many splits its keys get: a pure function of the capacity and
// the machine, never of lengths that the device holds, so that a plan stays valid in a captured graph.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gpu/attention_block.h"
#include "gpu/attention_tiles.h"

namespace fdpp {

// In seconds; fitted to 694 launches on an H200 (bench/results), root mean square of the error 16 %.
struct AttentionCosts {
  double iteration = 1.25e-6;  // of a block: a tile of each of its warps, where memory is not the bound
  double start = 5.4e-6;       // until the first keys are there, and to store the result
  double next = 3.2e-6;  // the same for each later wave, where other blocks of the multiprocessor hide a part of it
  double next_alone = 11e-6;  // and where there are no others
  double share = 2.9e-6;      // of sequences that are split: their states go through memory
  double split = 1e-7;        // and for each of their splits
  double reachable = 0.95;    // of the bandwidth that the maker states
};

struct AttentionMachine {
  int multiprocessors;
  double bandwidth;                       // bytes per second; 0: unknown
  AttentionTiles tiles[kAttentionTiles];  // warps 0: there is no such tile
  int resident[kAttentionTiles];  // blocks of each that run on a multiprocessor at a time; 0: the tile does not fit
};

struct AttentionPlan {
  int tile, num_splits;
};

// The time of `blocks` equal blocks with `iterations` tiles for each warp, in waves. In a last wave that does not fill
// the device some multiprocessors have all their blocks nonetheless, unless there are fewer blocks than
// multiprocessors.
inline double attention_cost(int64_t blocks, int num_splits, int64_t iterations, double iteration_bytes, int resident,
                             const AttentionMachine& machine, const AttentionCosts& costs) {
  const int64_t at_a_time = int64_t{machine.multiprocessors} * resident, waves = blocks / at_a_time,
                rest = blocks % at_a_time;
  const auto wave = [&](int64_t count) {
    const double bytes = static_cast<double>(count) * iteration_bytes;
    return static_cast<double>(iterations) * std::max(costs.iteration, bytes / (costs.reachable * machine.bandwidth));
  };
  const double later = static_cast<double>(std::max<int64_t>(waves + (rest > 0) - 1, 0));
  const double starts = costs.start + later * (resident > 1 ? costs.next : costs.next_alone);
  const double last = rest > 0 ? wave(rest > machine.multiprocessors ? at_a_time : rest) : 0.0;
  const double shared = num_splits > 1 ? costs.share + costs.split * num_splits : 0.0;
  return static_cast<double>(waves) * wave(at_a_time) + last + starts + shared;
}

// The cheapest of attention_cost. `units`: attention_units(); `keys`: the most that a sequence can have; `key_bytes`:
// of one key and its value.
inline AttentionPlan plan_attention(int64_t units, int64_t keys, int64_t key_bytes, AttentionMachine machine,
                                    const AttentionCosts& costs = {}) {
  if (machine.bandwidth == 0.0) machine.bandwidth = 3e10 * machine.multiprocessors;
  AttentionPlan best{0, 1};
  double least = -1.0;
  for (int tile = 0; tile < kAttentionTiles; ++tile) {
    const int resident = machine.resident[tile];
    if (resident == 0) continue;
    const int64_t step = int64_t{machine.tiles[tile].warps} * kKeyTile;
    const int64_t most = std::clamp<int64_t>((keys + step - 1) / step, 1, kMaxSplits);
    int64_t iterations = 0;
    for (int splits = 1; splits <= most; ++splits) {
      const int64_t before = iterations;
      iterations = (keys + step * splits - 1) / (step * splits);
      if (iterations == before) continue;  // more blocks for nothing
      const double bytes = static_cast<double>(step * key_bytes);
      const double cost = attention_cost(units * splits, splits, iterations, bytes, resident, machine, costs);
      if (least < 0.0 || cost < least) {
        least = cost;
        best = {tile, splits};
      }
    }
  }
  return best;
}

}  // namespace fdpp
