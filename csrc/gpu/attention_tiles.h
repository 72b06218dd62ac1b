// Shapes of the attention kernel's blocks, as data per kind of hardware.
#pragma once

#include "common/macros.h"

namespace fdpp {

struct AttentionTiles {
  int warps;   // each walks its own keys with its own pipeline
  int stages;  // tiles of 16 keys and values in shared memory per warp; one less is on its way while one is used
  int copies;  // of keys, and as many of values, whose addresses a lane computes together: registers against latency
  int states;  // of splits to merge, of whose o a lane loads a part together, which costs registers, too
  int shared_limit;  // bytes a block may have
  int blocks;        // of a multiprocessor, that registers must leave room for
};

constexpr int kKeyTile = 16;        // keys that a warp takes at a time
constexpr int kAttentionTiles = 2;  // small blocks; and one large block of a multiprocessor, of more warps

// Copies that bypass registers: 99 KiB is what a block can have on the smallest of these parts; larger parts run two or
// three blocks at a time, which keeps 35 to 105 KB on their way per multiprocessor. A large block has 128 KB on their
// way and twice the warps for a sequence, which wins where there are few sequences (measured on an H200); many follow
// each other better in small ones.
FDPP_INLINE constexpr AttentionTiles async_tiles(int head_dim, int tile) {
  constexpr int kLimit = 99 * 1024, kLargeLimit = 227 * 1024;
  if (tile == 1) {
    if (head_dim <= 64) return {8, 5, 4, 16, kLargeLimit, 1};
    if (head_dim <= 96) return {8, 4, 4, 16, kLargeLimit, 1};
    if (head_dim <= 128) return {8, 3, 4, 16, kLargeLimit, 1};
    return {4, head_dim <= 192 ? 4 : 3, 4, 16, kLargeLimit, 1};
  }
  if (head_dim <= 96) return {4, 3, 1, 12, kLimit, 3};
  if (head_dim <= 128) return {4, 2, 2, 16, kLimit, 3};
  if (head_dim <= 192) return {2, 3, 2, 16, kLimit, 2};
  return {2, 2, 2, 16, kLimit, 2};
}

// Copies through registers overlap nothing within a wave: one stage, so that more waves fit and overlap each other
// (double buffering gained nothing on MI210, FlashDecoding++ section 5). All loads of a tile start before the first is
// waited for.
FDPP_INLINE constexpr AttentionTiles register_tiles(int head_dim, int tile) {
  if (tile > 0) return {};
  return {head_dim <= 128 ? 4 : 2, 1, 16, 8, 64 * 1024, 1};
}

}  // namespace fdpp
