// How many warps of a block of the GEMV share its rows: a pure function of the shape and the machine.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gpu/chunks.h"
#include "gpu/linear_tiles.h"

namespace fdpp {

constexpr int kGemvRows = 4;  // the most rows of x that share a read of the weight

// The smallest team (its logarithm) that keeps the warps busy which run at a time, where blocks come in waves: within 5
// % of the best share of them that has rows. A lane gets at least one batch of chunks, as far as K goes.
inline int plan_gemv_team(int64_t N, int64_t K, int64_t M, int64_t resident_blocks, const LinearTiles& tiles) {
  const GemvTile& tile = tiles.gemv;
  const int64_t row_tiles = (M + kGemvRows - 1) / kGemvRows, batch = int64_t{kChunk} * tiles.warp_size * tile.unroll;
  const auto busy = [&](int team_log2) {
    const int64_t teams = (N + tile.outputs - 1) / tile.outputs, teams_of_block = tile.warps >> team_log2;
    const int64_t blocks = (teams + teams_of_block - 1) / teams_of_block * row_tiles;
    const int64_t waves = (blocks + resident_blocks - 1) / resident_blocks;
    return static_cast<double>(teams * row_tiles << team_log2) /
           static_cast<double>(waves * resident_blocks * tile.warps);
  };
  int most = 0;
  while (2 << most <= tile.warps && K >= batch * (2 << most)) ++most;
  double best = 0.0;
  for (int team = 0; team <= most; ++team) best = std::max(best, busy(team));
  for (int team = 0; team <= most; ++team) {
    if (busy(team) >= 0.95 * best) return team;
  }
  return most;
}

}  // namespace fdpp
