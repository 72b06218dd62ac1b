// Tiles of a weight and of x on their way through shared memory: slices of K, in a ring of stages of a warp's own.
#pragma once

#include "common/chunks.h"
#include "common/flat_plan.h"

namespace fdpp {

template <typename P, typename T, int kColumns, FlatTile kTile>
class WeightStream {
  static constexpr int kRows = kTile.rows + kColumns;  // of a stage: those of the weight, then those of x

 public:
  // Elements between rows: an odd multiple of 16 bytes, so that 8 rows at the same place lie in different banks.
  static constexpr int kStride = kTile.depth + kChunk;
  static constexpr int kStageElements = kRows * kStride;
  static constexpr int kBytes = kTile.stages * kStageElements * static_cast<int>(sizeof(T));
  static_assert(kTile.depth % kFragment == 0 && kTile.rows % kFragment == 0 && kTile.stages >= 1);

  // The steps from `first` on, up to `end`; what lies beyond N, M and K is zero.
  FDPP_INLINE WeightStream(const LinearParams& params, const FlatWork& work, char* memory, int64_t first, int64_t end)
      : p_(params), work_(work), memory_(reinterpret_cast<T*>(memory)), left_(end - first) {
    whole_ = p_.K % kChunk == 0 && is_whole<T>(p_.weight, p_.weight_stride) && is_whole<T>(p_.x, p_.x_stride);
    tile_ = first / work.steps_per_tile;
    step_ = static_cast<int>(first % work.steps_per_tile);
  }

  // Starts the copies of the next step into stage `stage`; none when there is none.
  FDPP_INLINE void fetch(int stage) {
    if (left_ > 0) {
      copy(memory_ + stage * kStageElements);
      --left_;
      if (++step_ == work_.steps_per_tile) {
        step_ = 0;
        ++tile_;
      }
    }
    P::copy_commit();
  }

  FDPP_INLINE const T* weights(int stage) const { return memory_ + stage * kStageElements; }
  FDPP_INLINE const T* inputs(int stage) const { return weights(stage) + kTile.rows * kStride; }

 private:
  FDPP_INLINE void copy(T* to) const {
    constexpr int kChunks = kTile.depth / kChunk;  // of a row
    const int lane = P::thread_index() % P::kWarpSize, warp = P::thread_index() / P::kWarpSize;
    const int64_t k = (int64_t{step_} * kTile.warps + warp) * kTile.depth;
    const int64_t n = tile_ / work_.row_tiles * kTile.rows, m = tile_ % work_.row_tiles * kColumns;
    FDPP_UNROLL_BY(kTile.copies)
    for (int begin = 0; begin < kRows * kChunks; begin += P::kWarpSize) {
      const int chunk = begin + lane, row = chunk / kChunks, element = chunk % kChunks * kChunk;
      if (kRows * kChunks % P::kWarpSize != 0 && row >= kRows) break;
      const bool of_weight = row < kTile.rows;
      const int64_t line = of_weight ? n + row : m + row - kTile.rows;
      const bool exists = line < (of_weight ? p_.N : p_.M) && k + element < p_.K;
      const T* from = static_cast<const T*>(of_weight ? p_.weight : p_.x) +
                      (exists ? line * (of_weight ? p_.weight_stride : p_.x_stride) + k + element : 0);
      T* const target = to + row * kStride + element;
      if (whole_) {
        P::copy16(target, from, exists);
      } else {
        copy_elements(target, from, exists ? p_.K - k - element : 0);
      }
    }
  }

  // Rows that 16-byte accesses cannot have: one element at a time.
  FDPP_INLINE static void copy_elements(T* to, const T* from, int64_t count) {
    Bytes16 bytes = {};
    uint16_t elements[kChunk];
    for (int i = 0; i < kChunk; ++i) elements[i] = i < count ? from[i].bits : uint16_t{0};
    for (int i = 0; i < 4; ++i) bytes.words[i] = elements[2 * i] | uint32_t{elements[2 * i + 1]} << 16;
    P::shared_store(reinterpret_cast<Bytes16*>(to), bytes);
  }

  const LinearParams& p_;
  const FlatWork& work_;
  T* memory_;
  int64_t left_, tile_;
  int step_;
  bool whole_;
};

}  // namespace fdpp
