// How many warps of a block of the GEMV share its rows: a pure function of the shape and the machine.
#pragma once

#include <cstdint>

#include "common/linear_tiles.h"

namespace fdpp {

// The smallest team that gives every multiprocessor `wanted` warps: loads on their way are what bandwidth is bound by.
inline int plan_gemv_team(int64_t N, int multiprocessors, GemvTile tile) {
  constexpr int kWantedWarps = 16;
  int team = 1;
  while (team < tile.warps && N * team < int64_t{kWantedWarps} * multiprocessors * tile.outputs) team *= 2;
  return team;
}

}  // namespace fdpp
