// How many splits the KV axis gets: a pure function of the keys and the machine. A device plans from the capacity, never from
// lengths that it holds, so that a plan stays valid in a captured graph; the CPU plans from the longest sequence.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/macros.h"

namespace fdpp {

constexpr int kMaxSplits = 128;

// `units`: independent (batch, kv head) pairs; `workers`: SMs or threads; `min_keys`: below this a split costs more than it
// brings. The work of one unit is the same for all, so the time is the number of waves over the number of splits; among
// the plans within 5 % of the best efficiency the one with fewest splits wins (as flash-attention's heuristic does).
inline int plan_splits(int64_t units, int64_t max_keys, int workers, int min_keys) {
  if (units <= 0 || max_keys <= min_keys || workers <= 1) return 1;
  const int64_t most = std::min<int64_t>(kMaxSplits, max_keys / min_keys);
  if (most <= 1) return 1;
  const auto efficiency = [&](int64_t splits) {
    const int64_t blocks = units * splits;
    const int64_t waves = (blocks + workers - 1) / workers;
    return static_cast<double>(blocks) / static_cast<double>(waves * workers);
  };
  double best = 0.0;
  for (int64_t splits = 1; splits <= most; ++splits) best = std::max(best, efficiency(splits));
  for (int64_t splits = 1; splits <= most; ++splits) {
    if (efficiency(splits) >= 0.95 * best) return static_cast<int>(splits);
  }
  return 1;
}

// The keys [begin, end) of one split of a sequence of `keys` keys: equal shares, whole multiples of `tile`.
struct KeyRange {
  int64_t begin, end;
};

FDPP_INLINE KeyRange split_range(int64_t first, int64_t last, int split, int num_splits, int tile) {
  const int64_t tiles = (last - first + tile - 1) / tile;
  const int64_t share = (tiles + num_splits - 1) / num_splits * tile;
  const int64_t begin = first + split * share < last ? first + split * share : last;
  return {begin, begin + share < last ? begin + share : last};
}

}  // namespace fdpp
