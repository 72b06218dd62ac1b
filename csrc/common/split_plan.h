// How many splits the KV axis gets: a pure function of the keys and the machine. A device plans from the capacity,
// never from lengths that it holds, so that a plan stays valid in a captured graph; the CPU plans from the longest
// sequence.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/macros.h"

namespace fdpp {

constexpr int kMaxSplits = 128;

// `units`: independent (batch, kv head) pairs; `workers`: SMs or threads; `min_keys`: below this a split costs more
// than it brings. The work of one unit is the same for all, so the time is the number of waves over the number of
// splits; among the plans within 5 % of the best efficiency the one with fewest splits wins (as flash-attention's
// heuristic does).
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

// The keys [begin, end) of one split of the keys [first, last): equal shares, whole multiples of `tile`. They depend on
// nothing but the sequence and num_splits, so that a given num_splits makes a result independent of the batch around
// it.
struct KeyRange {
  int begin, end;
};

FDPP_INLINE int split_share(int keys, int num_splits, int tile) {
  const int tiles = keys / tile + (keys % tile != 0);
  return (tiles + num_splits - 1) / num_splits * tile;
}

FDPP_INLINE KeyRange split_range(int first, int last, int split, int num_splits, int tile) {
  const int share = split_share(last - first, num_splits, tile);
  const int64_t begin = first + int64_t{split} * share, end = begin + share;
  return {static_cast<int>(begin < last ? begin : last), static_cast<int>(end < last ? end : last)};
}

// Splits that have keys.
FDPP_INLINE int nonempty_splits(int keys, int num_splits, int tile) {
  const int share = split_share(keys, num_splits, tile);
  return share == 0 ? 0 : (keys - 1) / share + 1;
}

}  // namespace fdpp
