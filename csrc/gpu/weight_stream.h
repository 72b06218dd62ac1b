// Tiles of a weight and of x on their way through shared memory: slices of K, in a ring of stages of a warp's own.
#pragma once

#include "gpu/chunks.h"
#include "gpu/flat_plan.h"

namespace fdpp {

template <typename Arch, typename T, int kPaddedM, FlatTile kTile>
class WeightStream {
  static constexpr int kChunks = kTile.depth / kChunk;     // of a row
  static constexpr int kRows = Arch::kWarpSize / kChunks;  // that the lanes of a warp copy at once
  static constexpr int kStep = kTile.warps * kTile.depth;  // from a slice of a warp to its next

 public:
  // Elements between rows: an odd multiple of 16 bytes, so that 8 rows at the same place lie in different banks.
  static constexpr int kStride = kTile.depth + kChunk;
  static constexpr int kStageElements = (kTile.rows + kPaddedM) * kStride;  // rows of the weight, then those of x
  static constexpr int kBytes = kTile.stages * kStageElements * static_cast<int>(sizeof(T));
  static_assert(kTile.depth % kFragment == 0 && kTile.rows % kFragment == 0 && kTile.stages >= 1);
  static_assert(kTile.rows % kRows == 0 && kPaddedM % kRows == 0, "a lane's rows are kRows apart");

  // `steps` steps from `first` on; what lies beyond N, M and K is zero.
  FDPP_INLINE WeightStream(const LinearParams& params, const FlatWork& work, char* memory, int64_t first, int steps)
      : p_(params), work_(work), memory_(reinterpret_cast<T*>(memory)), left_(steps) {
    const int lane = Arch::thread_index() % Arch::kWarpSize;
    row_ = lane / kChunks;
    element_ = lane % kChunks * kChunk;
    full_vectors_ =
        p_.K % kChunk == 0 && is_aligned16<T>(p_.weight, p_.weight_stride) && is_aligned16<T>(p_.x, p_.x_stride);
    begin_tile(first / work.steps_per_tile, static_cast<int>(first % work.steps_per_tile));
  }

  // Hints at the weights of the first `steps` steps, which may be called for before anything may be read.
  FDPP_INLINE void prefetch(int steps) const {
    if (!full_vectors_) return;
    FDPP_UNROLL_BY(1)
    for (int step = 0; step < steps; ++step) {
      if (step >= left_ || step * kStep >= k_left_) return;
      const T* from = weight_.lane + step * kStep;
      FDPP_UNROLL_BY(1)
      for (int row = 0; row < weight_.rows; row += kRows, from += kRows * weight_.stride) Arch::prefetch(from);
    }
  }

  // Starts the copies of the next step into stage `stage`; none when there is none.
  FDPP_INLINE void fetch(int stage) {
    if (left_ > 0) {
      T* const to = memory_ + stage * kStageElements + row_ * kStride + element_;
      if (full_vectors_) {
        copy<true, kTile.rows>(to, weight_);
        copy<true, kPaddedM>(to + kTile.rows * kStride, x_);
      } else {
        copy<false, kTile.rows>(to, weight_);
        copy<false, kPaddedM>(to + kTile.rows * kStride, x_);
      }
      --left_;
      weight_.lane += kStep;
      x_.lane += kStep;
      k_left_ -= kStep;
      if (++step_ == work_.steps_per_tile) begin_tile(tile_ + 1, 0);
    }
    Arch::copy_commit();
  }

  FDPP_INLINE const T* weights(int stage) const { return memory_ + stage * kStageElements; }
  FDPP_INLINE const T* inputs(int stage) const { return weights(stage) + kTile.rows * kStride; }

 private:
  // A lane copies chunks at one place of every kRows-th row.
  struct Operand {
    const T* lane;   // the next one, in the lane's first row
    int64_t stride;  // between rows
    int rows;        // of the tile that exist, from the lane's first one on
  };

  FDPP_INLINE void begin_tile(int64_t tile, int step) {
    const int warp = Arch::thread_index() / Arch::kWarpSize;
    const int64_t k = (int64_t{step} * kTile.warps + warp) * kTile.depth + element_;
    const int64_t n = tile / work_.row_tiles * kTile.rows + row_, m = tile % work_.row_tiles * kPaddedM + row_;
    weight_ = operand(p_.weight, p_.weight_stride, n, p_.N, kTile.rows, k);
    x_ = operand(p_.x, p_.x_stride, m, p_.M, kPaddedM, k);
    k_left_ = p_.K - k;
    tile_ = tile;
    step_ = step;
  }

  FDPP_INLINE static Operand operand(const void* data, int64_t stride, int64_t row, int64_t rows, int most, int64_t k) {
    return {static_cast<const T*>(data) + row * stride + k, stride,
            static_cast<int>(rows - row < most ? rows - row : most)};
  }

  template <bool kFullVectors, int kCount>
  FDPP_INLINE void copy(T* to, const Operand& operand) const {
    const T* from = operand.lane;
    const int rows = k_left_ > 0 ? operand.rows : 0;
    FDPP_UNROLL_BY(kFullVectors ? kCount : 1)
    for (int row = 0; row < kCount; row += kRows, from += kRows * operand.stride) {
      if constexpr (kFullVectors) {
        Arch::copy16(to + row * kStride, from, row < rows);
      } else {
        copy_elements(to + row * kStride, from, row < rows ? k_left_ : 0);
      }
    }
  }

  // Rows that 16-byte accesses cannot have: one element at a time.
  FDPP_INLINE static void copy_elements(T* to, const T* from, int64_t count) {
    Bytes16 bytes = {};
    uint16_t elements[kChunk];
    for (int i = 0; i < kChunk; ++i) elements[i] = i < count ? from[i].bits : uint16_t{0};
    for (int i = 0; i < 4; ++i) bytes.words[i] = elements[2 * i] | uint32_t{elements[2 * i + 1]} << 16;
    Arch::shared_store(reinterpret_cast<Bytes16*>(to), bytes);
  }

  const LinearParams& p_;
  const FlatWork& work_;
  T* memory_;
  Operand weight_, x_;
  int64_t k_left_, tile_;            // k_left_: elements of a row from the lane's place on
  int left_, step_, row_, element_;  // row_, element_: the lane's place in a slice
  bool full_vectors_;
};

}  // namespace fdpp
