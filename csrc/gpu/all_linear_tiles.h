// The tiles of every kernel of linear layers of an architecture, for those who plan.
#pragma once

#include <utility>

#include "gpu/packed_group.h"

namespace fdpp {

template <typename Arch, int... kFormats>
constexpr LinearTiles linear_tiles_of(std::integer_sequence<int, kFormats...>) {
  LinearTiles tiles{Arch::kWarpSize, Arch::kGemvTile, Arch::template Fragments<f16>::kInputs, {}, {}};
  for (int i = 0; i < 4; ++i) {
    for (int tile = 0; tile < kFlatTiles; ++tile) tiles.flat[i][tile] = Arch::flat_tile(8 << i, tile);
  }
  for (int i = 0; i < 3; ++i) {
    ((tiles.packed[i][kFormats] = PackedGroup<Arch, f16, static_cast<WeightFormat>(kFormats)>::tile(8 << i)), ...);
  }
  return tiles;
}

template <typename Arch>
inline constexpr LinearTiles kLinearTiles = linear_tiles_of<Arch>(std::make_integer_sequence<int, kNumWeightFormats>{});

}  // namespace fdpp
