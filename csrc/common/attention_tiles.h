// Shapes of the attention kernel's blocks, as data per kind of hardware.
#pragma once

#include "common/macros.h"

namespace fdpp {

struct AttentionTiles {
  int warps;   // each walks its own keys with its own pipeline
  int stages;  // tiles of 16 keys and values in shared memory per warp; one less is on its way while one is used
  int copies;  // of keys, and as many of values, whose addresses a lane computes together: registers against latency
  int states;  // of splits to merge, of whose o a lane loads a part together: likewise
  int shared_limit;  // bytes a block may have
  int blocks;        // of a multiprocessor, that registers must leave room for
};

// Copies that bypass registers: 99 KiB is what a block can have on the smallest of these parts; larger parts run two or three
// blocks at a time, which keeps 35 to 105 KB on their way per multiprocessor.
FDPP_INLINE constexpr AttentionTiles async_tiles(int head_dim) {
  constexpr int kLimit = 99 * 1024;
  if (head_dim <= 96) return {4, 3, 1, 12, kLimit, 4};
  if (head_dim <= 128) return {4, 2, 2, 16, kLimit, 3};
  if (head_dim <= 192) return {2, 3, 2, 16, kLimit, 2};
  return {2, 2, 2, 16, kLimit, 2};
}

// Copies through registers overlap nothing within a wave: one stage, so that more waves fit and overlap each other (double
// buffering gained nothing on MI210, FlashDecoding++ section 5). All loads of a tile start before the first is waited for.
FDPP_INLINE constexpr AttentionTiles register_tiles(int head_dim) {
  return {head_dim <= 128 ? 4 : 2, 1, 16, 8, 64 * 1024, 1};
}

}  // namespace fdpp
