// The guarded unified maximum: the softmax of every backend.
//
// FlashDecoding++ (arXiv 2311.01282, section 3) replaces the running maximum of a partial softmax by one value phi that
// all splits share: a split sums l = sum e^(logit - phi) and o = sum e^(logit - phi) * v, and splits merge by plain
// addition. Real models leave the range in which that is safe, so here a split's state is (r, l, o), with
// t = logit * log2(e):
//
//     l = sum 2^(t - r),   o = sum 2^(t - r) * v,   r = phi * log2(e) unless the guard moved it.
//
// The guard compares the maximum of each tile with finite bounds (a fast-math compiler may delete isinf tests):
//   - the first tile lies below r + kLow: every later sum would sit near underflow, so r becomes the tile's maximum;
//   - a tile lies above r + kHigh: r becomes the tile's maximum, and (l, o) are rescaled once.
// A later tile far below r contributes less than a rounding error, exactly as in the classic softmax.
#pragma once

#include <math.h>
#include <cstdint>

#include "common/macros.h"

namespace fdpp {

constexpr float kLog2e = 1.4426950408889634f;

// Bounds in log2 units for probabilities kept in float32 (or bfloat16, which has the same exponent). At 2^20, 256 keys
// of |v| = 1e30 stay below the largest float; at 2^-20, |v| = 1e-30 stays above the smallest normal one. In natural
// units this is +-13.9 around phi, where more than 99.9 % of the logits of most models lie (paper, table of logit
// ranges).
struct WideGuard {
  static constexpr bool kEveryTile = false;
  static constexpr float kLow = -20.0f;
  static constexpr float kHigh = 20.0f;
};

// Probabilities that feed a matrix unit as float16 end at 65504 and lose bits below 2^-14.
struct NarrowGuard {
  static constexpr bool kEveryTile = false;
  static constexpr float kLow = -6.0f;
  static constexpr float kHigh = 14.0f;
};

// What everybody else does, for comparison (bench/attention.py): each tile's maxima are exchanged, r is the largest so
// far, and (l, o) are rescaled every time.
struct RunningMaximum {
  static constexpr bool kEveryTile = true;
  static constexpr float kLow = INFINITY;
  static constexpr float kHigh = 0.0f;
};

// 2^x of the C library, unless a backend brings its own.
struct LibraryMath {
  FDPP_INLINE static float exp2(float x) { return exp2f(x); }
};

// The reference that a row begins with; 0 where phi says nothing. phi is subtracted from no logit but by way of the
// guard, so that one far from them all costs a move and no digit of the result.
FDPP_INLINE float first_reference(float phi) {
  const float reference = phi * kLog2e;
  return fabsf(reference) <= 3e38f ? reference : 0.0f;  // neither infinite nor NaN
}

// A row's reference and what the guard decided for a tile.
struct Rereference {
  float reference;  // r to use for the tile
  float rescale;    // factor for (l, o) gathered so far; 1 when nothing moved
  bool moved;
};

// `empty`: the row has seen no unmasked key yet, and `reference` is its first one. A tile maximum of -infinity (all
// masked) moves nothing.
template <typename Guard, typename Math = LibraryMath>
FDPP_INLINE Rereference guard(float reference, bool empty, float tile_max) {
  if (empty) {
    const bool below = tile_max < reference + Guard::kLow && tile_max > -INFINITY;
    const bool outside = below || tile_max > reference + Guard::kHigh;
    return {outside ? tile_max : reference, 1.0f, outside};
  }
  if (tile_max > reference + Guard::kHigh) return {tile_max, Math::exp2(reference - tile_max), true};
  return {reference, 1.0f, false};
}

// Merging partial states (r_s, l_s, o_s): the weight of a state is 2^(r_s - r_max); it is exactly 1, and the merge the
// paper's plain sum, when no reference moved. States with l = 0 saw no key and have no say in r_max.
struct MergeReference {
  float r_max = 0.0f;
  bool any = false;

  FDPP_INLINE void add(float reference, float l) {
    if (l == 0.0f) return;
    r_max = any ? (reference > r_max ? reference : r_max) : reference;
    any = true;
  }

  template <typename Math = LibraryMath>
  FDPP_INLINE float weight(float reference) const {
    return reference == r_max ? 1.0f : Math::exp2(reference - r_max);
  }
};

// A sink is one more logit in the denominator, without a value: a state with o = 0. A NaN makes its row NaN, and leaves
// the reference to the keys.
struct SinkState {
  float reference;
  float l;
};

template <typename Guard, typename Math = LibraryMath>
FDPP_INLINE SinkState sink_state(float sink, float phi) {
  const float t = sink * kLog2e, reference = first_reference(phi);
  if (!(t > -INFINITY)) return {-INFINITY, t == -INFINITY ? 0.0f : t};
  if (t >= reference + Guard::kLow && t <= reference + Guard::kHigh) return {reference, Math::exp2(t - reference)};
  return {t, 1.0f};
}

}  // namespace fdpp
