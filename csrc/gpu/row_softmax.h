// The softmax of the rows that a lane of a warp has a part of: logits in, probabilities out, and the state (r, l, o) of
// softmax_state.h in registers. The reference is shared by all splits until the guard moves it, so a tile costs one
// vote of the warp, and no exchange of maxima.
#pragma once

#include <math.h>

#include "common/softmax_state.h"
#include "gpu/arch.h"
#include "gpu/attention_block.h"

namespace fdpp {

// Which guard the dtype of the probabilities wants.
#ifdef FDPP_RUNNING_MAXIMUM
template <typename T>
struct GuardOf {
  using type = RunningMaximum;
};
#else
template <typename T>
struct GuardOf {
  using type = WideGuard;
};
template <>
struct GuardOf<f16> {
  using type = NarrowGuard;
};
#endif

template <typename Arch, typename Fragment, int D>
class RowSoftmax {
 public:
  static constexpr int kValues = Fragment::kValues, kSlots = Fragment::kSlots;
  static constexpr int kFragments = D / kFragment;
  using Guard = typename GuardOf<typename Fragment::T>::type;

  FDPP_INLINE RowSoftmax(const AttentionParams& params, const AttentionBlock& block)
      : p_(params), lane_(Arch::thread_index() % Arch::kWarpSize) {
    scale_ = p_.softcap > 0.0f ? p_.softmax_scale / p_.softcap : p_.softmax_scale * kLog2e;
    FDPP_UNROLL
    for (int s = 0; s < kSlots; ++s) {
      const int row = Fragment::row(lane_, s);
      const bool exists = row < block.num_rows;
      head_[s] = exists ? block.head(p_, row) : 0;
      const int query = exists ? block.first_query + block.token(p_, row) : -1;
      query_[s] = query;
      high_[s] = query < block.keys.end ? query : block.keys.end - 1;
      low_[s] = p_.window >= 0 && query > p_.window ? query - static_cast<int>(p_.window) : 0;
      slope_[s] = p_.alibi_slopes != nullptr ? p_.alibi_slopes[head_[s]] * kLog2e : 0.0f;
      empty_[s] = true;
      r_[s] = p_.phi != nullptr ? first_reference(p_.phi[head_[s]]) : 0.0f;
      l_[s] = 0.0f;
    }
    FDPP_UNROLL
    for (int f = 0; f < kFragments; ++f) {
      FDPP_UNROLL
      for (int i = 0; i < kValues; ++i) o[f][i] = 0.0f;
    }
  }

  // q k -> 2^(t - r) in place, for the 16 keys from `first_key` on. Gathers l, and rescales l and o where r moves.
  FDPP_INLINE void weigh(float (&x)[kValues], int first_key) {
    float most[kSlots];
    FDPP_UNROLL
    for (int s = 0; s < kSlots; ++s) most[s] = -INFINITY;
    FDPP_UNROLL
    for (int i = 0; i < kValues; ++i) {
      const int s = Fragment::slot(i), key = first_key + Fragment::column(lane_, i);
      const float t = logit(x[i], s, key);
      x[i] = key >= low_[s] && key <= high_[s] ? t : -INFINITY;
      most[s] = x[i] > most[s] ? x[i] : most[s];
    }
    bool outside = false;
    FDPP_UNROLL
    for (int s = 0; s < kSlots; ++s) outside |= most[s] > (empty_[s] ? -INFINITY : r_[s] + Guard::kHigh);
    if (Guard::kEveryTile || Arch::any(outside)) move(most);
    FDPP_UNROLL
    for (int i = 0; i < kValues; ++i) {
      const int s = Fragment::slot(i);
      x[i] = Arch::exp2(x[i] - r_[s]);
      l_[s] += x[i];
    }
  }

  // After the last tile: l of the whole row, on every lane of it.
  FDPP_INLINE float l(int slot) const { return Fragment::sum_of_row(l_[slot]); }
  FDPP_INLINE float r(int slot) const { return r_[slot]; }

  float o[kFragments][kValues];

 private:
  // tanh to a few units in the last place: near 0, where 1 - 2 / (1 + e^2x) cancels, x + x^3 p(x^2) (minimax for
  // |x| <= 0.55; relative error 4e-8 before rounding). Elsewhere e^2x may overflow or vanish, which gives the limits.
  FDPP_INLINE static float tanh(float x) {
    const float square = x * x;
    const float p = ((0.016437566f * square - 0.052671805f) * square + 0.13320725f) * square - 0.33332947f;
    const float far = 1.0f - 2.0f / (1.0f + Arch::exp2(x * (2.0f * kLog2e)));
    return fabsf(x) < 0.55f ? x + x * square * p : far;
  }

  // t = logit * log2(e)
  FDPP_INLINE float logit(float dot, int s, int key) const {
    float t = dot * scale_;
    if (p_.softcap > 0.0f) t = tanh(t) * (p_.softcap * kLog2e);
    if (p_.alibi_slopes != nullptr) t += slope_[s] * static_cast<float>(key - query_[s]);
    return t;
  }

  // The guard, for all rows of the warp: the first keys of a row, or a logit that is out of range.
  FDPP_INLINE void move(const float (&most)[kSlots]) {
    float rescale[kSlots];
    FDPP_UNROLL
    for (int s = 0; s < kSlots; ++s) {
      const float tile_max = Fragment::max_of_row(most[s]);
      const Rereference next = guard<Guard, Arch>(r_[s], empty_[s], tile_max);
      r_[s] = next.reference;
      rescale[s] = next.rescale;
      l_[s] *= next.rescale;
      empty_[s] = empty_[s] && !(tile_max > -INFINITY);
      if (next.moved && Fragment::leads_row(lane_) && p_.rereference_count != nullptr) {
        Arch::add(p_.rereference_count + head_[s], 1);
      }
    }
    FDPP_UNROLL
    for (int f = 0; f < kFragments; ++f) {
      FDPP_UNROLL
      for (int i = 0; i < kValues; ++i) o[f][i] *= rescale[Fragment::slot(i)];
    }
  }

  const AttentionParams& p_;
  int lane_;
  float scale_;  // of a dot product, in units of 1 / log2(e) or of the softcap
  int head_[kSlots], query_[kSlots], low_[kSlots], high_[kSlots];
  float slope_[kSlots], r_[kSlots], l_[kSlots];
  bool empty_[kSlots];
};

}  // namespace fdpp
