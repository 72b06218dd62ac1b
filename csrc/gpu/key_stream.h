// The keys and values of one warp on their way through shared memory: tiles of 16, in a ring of stages of the warp's
// own.
#pragma once

#include "gpu/arch.h"
#include "gpu/attention_block.h"
#include "gpu/attention_tiles.h"

namespace fdpp {

template <typename Arch, typename T, int D, int kStages, int kCopies>
class KeyStream {
 public:
  static constexpr int kTile = kKeyTile;
  // Elements between rows: an odd multiple of 16 bytes, so that 8 rows at the same place lie in different banks.
  static constexpr int kStride = D + 8;
  static constexpr int kBytes = kStages * 2 * kTile * kStride * static_cast<int>(sizeof(T));
  static_assert(D % 16 == 0 && kStages >= 1);

  // Tiles begin `step` keys apart, the first at `first`; keys at and past `end` are zero.
  FDPP_INLINE KeyStream(const AttentionParams& params, const AttentionBlock& block, char* memory, int first, int step)
      : p_(params),
        memory_(reinterpret_cast<T*>(memory)),
        batch_(block.batch),
        end_(block.keys.end),
        next_(first),
        step_(step) {
    run_ = p_.layout.block_table == nullptr ? end_ : static_cast<int>(p_.layout.page_size);
    k_ = static_cast<const T*>(p_.k.data) + block.kv_head * p_.k.head_stride;
    v_ = static_cast<const T*>(p_.v.data) + block.kv_head * p_.v.head_stride;
    locate();
  }

  // Starts the copies of the next tile, in turn, into stage `stage`; none when there is none.
  FDPP_INLINE void fetch(int stage) {
    if (next_ < end_) {
      copy(stage);
      next_ += step_;
      locate();
    }
    Arch::copy_commit();
  }

  FDPP_INLINE const T* keys(int stage) const { return memory_ + stage * (2 * kTile * kStride); }
  FDPP_INLINE const T* values(int stage) const { return keys(stage) + kTile * kStride; }

  // The block table names a block that the cache does not have, for one of the keys that this lane has looked up.
  FDPP_INLINE bool out_of_range() const { return out_of_range_; }

 private:
  static constexpr int kChunkElements = 16 / static_cast<int>(sizeof(T)),
                       kChunks = D / kChunkElements;  // 16 bytes; of a row

  // Copies through registers (one stage) need all that there are for what is on its way: none are left for a second
  // form.
  static constexpr bool kRuns = kStages > 1;

  // Looks up key lane % 16 of the next tile: one tile ahead, so that copies need not wait for the block table.
  FDPP_INLINE void locate() {
    const int key = next_ + Arch::thread_index() % kTile;
    block_ = -1;
    if (key >= end_) return;
    if (p_.layout.block_table == nullptr) {
      block_ = batch_;
      offset_ = key;
      return;
    }
    const int page_size = static_cast<int>(p_.layout.page_size), page = key / page_size;
    const int block = p_.layout.block_table[batch_ * p_.layout.block_table_stride + page];
    if (block >= 0 && block < p_.layout.num_blocks) {
      block_ = block;
      offset_ = key - page * page_size;
    } else {
      out_of_range_ = true;
    }
  }

  FDPP_INLINE void copy(int stage) {
    T* const to = memory_ + stage * (2 * kTile * kStride);
    if constexpr (kRuns) {
      const int block = Arch::shuffle(block_, 0), offset = Arch::shuffle(offset_, 0);
      const int left = end_ - next_, keys = left < kTile ? left : kTile;
      if (block >= 0 && offset + keys <= run_) return copy_run(to, block, offset, keys);
    }
    copy_keys(to);
  }

  // `keys` keys that follow each other in one block: a lane has the same place in every row, and addresses a constant
  // step.
  FDPP_INLINE void copy_run(T* to, int block, int offset, int keys) const {
    constexpr int kRows = Arch::kWarpSize / kChunks;  // that a warp copies at once; lanes may be left over
    const int lane = Arch::thread_index() % Arch::kWarpSize, row = lane / kChunks,
              element = lane % kChunks * kChunkElements;
    if (row >= kRows) return;
    to += row * kStride + element;
    const T* k = at(p_.k, k_, block, offset + row) + element;
    const T* v = at(p_.v, v_, block, offset + row) + element;
    FDPP_UNROLL
    for (int first = 0; first < kTile; first += kRows) {
      if (kTile % kRows == 0 || first + row < kTile) {
        const bool valid = first + row < keys;
        Arch::copy16(to + first * kStride, k, valid);
        Arch::copy16(to + (kTile + first) * kStride, v, valid);
      }
      k += kRows * p_.k.token_stride;
      v += kRows * p_.v.token_stride;
    }
  }

  // Keys that lie anywhere, or nowhere.
  FDPP_INLINE void copy_keys(T* to) const {
    const int lane = Arch::thread_index() % Arch::kWarpSize;
    FDPP_UNROLL_BY(kCopies)
    for (int begin = 0; begin < kTile * kChunks; begin += Arch::kWarpSize) {
      const int chunk = begin + lane, row = chunk / kChunks, element = chunk % kChunks * kChunkElements;
      const int block = Arch::shuffle(block_, row % kTile), offset = Arch::shuffle(offset_, row % kTile);
      if (row < kTile) {
        const bool valid = block >= 0;
        T* target = to + row * kStride + element;
        Arch::copy16(target, at(p_.k, k_, valid ? block : 0, offset) + element, valid);
        Arch::copy16(target + kTile * kStride, at(p_.v, v_, valid ? block : 0, offset) + element, valid);
      }
    }
  }

  FDPP_INLINE static const T* at(const CacheView& cache, const T* head, int block, int offset) {
    return head + block * cache.block_stride + offset * cache.token_stride;
  }

  const AttentionParams& p_;
  const T *k_, *v_;
  T* memory_;
  int batch_, end_, next_, step_;
  int run_;  // keys that follow each other in memory, from the first of a block on
  int block_ = -1, offset_ = 0;
  bool out_of_range_ = false;
};

}  // namespace fdpp
