// What one block of the GPU attention kernel has to do, and the scratch through which blocks meet.
//
// The query heads of a kv head times the new tokens are its rows; a block has up to 16 of them and one split of the
// keys of one (sequence, kv head): the split is what varies fastest over the grid.
#pragma once

#include "common/macros.h"
#include "common/params.h"
#include "common/split_plan.h"

namespace fdpp {

constexpr int kRowTile = 16;

FDPP_INLINE int attention_rows(const AttentionParams& p) { return p.query_heads / p.kv_heads * p.query_len; }

FDPP_INLINE int attention_row_tiles(const AttentionParams& p) { return (attention_rows(p) + kRowTile - 1) / kRowTile; }

// Every (sequence, kv head, row tile) is a unit. AttentionParams::arrivals counts, for each, the splits that
// have finished; it is 0 before a launch, and after.
FDPP_INLINE int64_t attention_units(const AttentionParams& p) {
  return int64_t{p.batch} * p.kv_heads * attention_row_tiles(p);
}

// AttentionParams::partial [units, splits, 16, D + 2]: o [D], l, r of each row. What it holds at the start does not
// matter.
FDPP_INLINE constexpr int64_t attention_state_floats(int head_dim) { return int64_t{kRowTile} * (head_dim + 2); }

FDPP_INLINE int64_t attention_partial_floats(const AttentionParams& p) {
  return p.num_splits > 1 ? attention_units(p) * p.num_splits * attention_state_floats(p.head_dim) : 0;
}

struct AttentionBlock {
  int unit, split;
  int batch, kv_head;
  int first_row, num_rows;  // num_rows of the 16 exist
  int first_query;          // position of the first new token; negative where the sequence is shorter than that
  KeyRange keys;
  int splits;         // that have keys, at least 1; the others have nothing to do
  bool out_of_range;  // the length is no length of this cache: the block then takes it for 0, and gives NaN

  // A row: its query head and its new token.
  FDPP_INLINE int head(const AttentionParams& p, int row) const {
    const int group = p.query_heads / p.kv_heads;
    return kv_head * group + (first_row + row) % group;
  }
  FDPP_INLINE int token(const AttentionParams& p, int row) const {
    return (first_row + row) / (p.query_heads / p.kv_heads);
  }
};

// Splits are whole multiples of `tile` keys.
FDPP_INLINE AttentionBlock attention_block(const AttentionParams& p, int index, int tile) {
  AttentionBlock block;
  block.unit = index / p.num_splits;
  block.split = index % p.num_splits;
  const int row_tiles = attention_row_tiles(p), pair = block.unit / row_tiles;
  block.batch = pair / p.kv_heads;
  block.kv_head = pair % p.kv_heads;
  block.first_row = block.unit % row_tiles * kRowTile;
  const int rows = attention_rows(p) - block.first_row;
  block.num_rows = rows < kRowTile ? rows : kRowTile;

  const int given = p.cache_seqlens[block.batch];
  block.out_of_range = given < 0 || given > p.capacity;
  const int length = block.out_of_range ? 0 : given;
  block.first_query = length - p.query_len;
  const int first_key =
      p.window >= 0 && block.first_query > p.window ? block.first_query - static_cast<int>(p.window) : 0;
  block.keys = split_range(first_key, length, block.split, p.num_splits, tile);
  const int splits = nonempty_splits(length - first_key, p.num_splits, tile);
  block.splits = splits < 1 ? 1 : splits;
  return block;
}

}  // namespace fdpp
