// Shapes of the blocks of linear layers, as data per kind of hardware.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/macros.h"
#include "common/weight_format.h"

namespace fdpp {

struct GemvTile {
  int warps;    // of a block
  int outputs;  // rows of the weight that a warp has at once
  int unroll;   // chunks of each of them on their way at once
};

struct FlatTile {
  int rows;             // of the weight (the paper's BN), multiples of 16; 0: there is no such tile
  int depth;            // elements of K that a warp takes at a time, multiples of 16
  int warps;            // they take turns along K, each with a pipeline of its own
  int stages;           // tiles in shared memory per warp; one less is on its way while one is used
  int shared_limit;     // bytes a block may have
  int blocks;           // of a multiprocessor, that registers must leave room for
  bool direct = false;  // direct_gemm_kernel.h: stages are slices in registers, all on their way while one is used
};

// Four tile shapes. 0: 16 rows of the weight. 1: 32 rows, reads x half as often. 2: 16 rows without shared memory.
// 3: 32 rows, one large block per multiprocessor.
constexpr int kFlatTiles = 4, kDirectTile = 2, kLargeTile = 3;

// Copies that bypass registers. 99 KiB is what a block can have on the smallest of these parts; where a multiprocessor
// has more it runs two or three blocks. The large tile is for parts where a block can have 227 KiB: with N / 32 blocks
// for about as many multiprocessors it alone has enough on its way. 128 bytes of a row at a time are what memory gives
// best; many rows of x leave room for half of that.
FDPP_INLINE constexpr FlatTile async_flat_tile(int padded_m, int tile) {
  constexpr int kLimit = 99 * 1024, kLargeLimit = 227 * 1024;
  if (tile == kDirectTile) {
    // Measured on an H200 over rings of 1 to 6 slices, 4 to 16 warps and 1 to 6 blocks: bench/results/README.md.
    if (padded_m <= 8) return {16, 64, 8, 2, kLimit, 3, true};
    if (padded_m <= 16) return {16, 64, 8, 2, kLimit, 2, true};  // three would spill registers up to 8.9
    return {16, 64, 8, padded_m <= 32 ? 2 : 1, kLimit, padded_m <= 32 ? 2 : 1, true};
  }
  if (tile == kLargeTile) {
    if (padded_m <= 8) return {32, 64, 8, 4, kLargeLimit, 1};
    if (padded_m <= 16) return {32, 64, 8, 3, kLargeLimit, 1};
    if (padded_m <= 32) return {32, 32, 8, 4, kLargeLimit, 1};
    return {32, 32, 4, 5, kLargeLimit, 1};
  }
  const bool wide = tile == 1;
  const int rows = wide ? 32 : 16;
  if (padded_m <= 8) return {rows, 64, 4, wide ? 4 : 5, kLimit, 3};
  if (padded_m <= 16) return {rows, 64, 4, wide ? 3 : 4, kLimit, 2};
  if (padded_m <= 32) return {rows, 64, 4, wide ? 2 : 3, kLimit, 2};
  return {rows, 32, 4, wide ? 2 : 3, kLimit, 2};
}

// Copies through registers: one stage, and more waves instead, for the reason that attention_tiles.h gives.
FDPP_INLINE constexpr FlatTile register_flat_tile(int padded_m, int tile) {
  if (tile >= 2) return {};
  return {tile == 1 ? 32 : 16, padded_m <= 32 ? 64 : 32, 4, 1, 64 * 1024, 1};
}

// Tiles of packed weights (packed_gemm_kernel.h), whose stages are slices in registers, and hints at those that follow.
// A lane keeps `words` of a group of a panel, and `header_words` of all of them. Two panels read x half as often as
// one; the fewer bits, the more groups are on their way at once.
constexpr int kPackedRing = 2;  // stages in registers

FDPP_INLINE constexpr FlatTile packed_tile(int padded_m, int words, int header_words) {
  constexpr int kMany = 16, kMost = 20;  // words of a stage
  int panels = 2, groups = 4;
  while (groups > 1 && panels * (groups * words + header_words) > kMost) groups /= 2;
  if (panels * (words + header_words) > kMost) panels = 1;
  const bool many = panels * (groups * words + header_words) > kMany;
  const int blocks = (padded_m <= 8 ? 4 : padded_m <= 16 ? 3 : 2) - (many && padded_m <= 16 ? 1 : 0);
  return {panels * kPanelRows, groups * kGroup, 4, kPackedRing + 4, 99 * 1024, blocks, true};
}

// What M rows of x are padded to; the matrix unit takes `least` rows at once.
constexpr int kMaxPaddedM = 64, kMaxPackedPaddedM = 32;  // of packed weights: four more sums for each of x

FDPP_INLINE constexpr int pad_m(int64_t M, int least, int most = kMaxPaddedM) {
  int padded_m = least;
  while (padded_m < M && padded_m < most) padded_m *= 2;
  return padded_m;
}

// The tiles of one kind of hardware, for those who plan.
struct LinearTiles {
  int warp_size;
  GemvTile gemv;
  int least_padded_m;
  FlatTile flat[4][kFlatTiles];           // for x padded to 8, 16, 32 and 64 rows
  FlatTile packed[3][kNumWeightFormats];  // to 8, 16 and 32 rows

  const FlatTile (&of(int padded_m) const)[kFlatTiles] {
    return flat[padded_m <= 8 ? 0 : padded_m <= 16 ? 1 : padded_m <= 32 ? 2 : 3];
  }

  const FlatTile& packed_of(int padded_m, WeightFormat format) const {
    return packed[padded_m <= 8 ? 0 : padded_m <= 16 ? 1 : 2][static_cast<int>(format)];
  }

  // How many of the flat tiles, in their order, a device has whose blocks can have so much shared memory.
  int fitting(int shared_bytes) const {
    int count = 0;
    while (count < kFlatTiles && flat[0][count].rows > 0 && flat[0][count].shared_limit <= shared_bytes) ++count;
    return count;
  }
};

}  // namespace fdpp
