// Merging states (r, l, o) of the 16 rows of a block: those of its warps, and those of the splits of a sequence. Sums have a fixed
// order, so that results do not depend on who was first.
#pragma once

#include <math.h>

#include "common/attention_block.h"
#include "common/chunks.h"
#include "common/softmax_state.h"

namespace fdpp {

// Where states lie, each as attention_state_floats(): the warps' in shared memory, those of other blocks in global memory.
template <typename P>
struct SharedStates {
  const float* first;
  int stride;
  FDPP_INLINE float load(int state, int index) const { return P::shared_load(first + state * stride + index); }
};
template <typename P>
struct GlobalStates {
  const float* first;
  int64_t stride;
  FDPP_INLINE float load(int state, int index) const { return P::coherent_load(first + state * stride + index); }
};

template <typename P, typename T, int D, int kThreads>
class AttentionMerge {
 public:
  FDPP_INLINE static constexpr int scratch_bytes(int states) {
    return kRowTile * (states + 2) * static_cast<int>(sizeof(float));
  }

  FDPP_INLINE AttentionMerge(const AttentionParams& params, const AttentionBlock& block) : p_(params), block_(block) {}

  // The merged state goes to `partial`, or, when that is null, becomes the output. For the whole block; `scratch` is shared
  // memory of scratch_bytes(count).
  template <typename States>
  FDPP_INLINE void run(const States& states, int count, float* scratch, float* partial) const {
    float* const l = scratch + kRowTile * count;
    float* const r = l + kRowTile;
    weigh(states, count, partial == nullptr && p_.sinks != nullptr, scratch, l, r);
    P::barrier();
    const int thread = P::thread_index();
    for (int i = thread; i < block_.num_rows * D; i += kThreads) {
      const int row = i / D;
      float o = 0.0f;
      for (int s = 0; s < count; ++s) o += P::shared_load(scratch + s * kRowTile + row) * states.load(s, i);
      if (partial != nullptr) {
        partial[i] = o;
      } else {
        const float sum = P::shared_load(l + row);
        const int64_t token = int64_t{block_.batch} * p_.query_len + block_.token(p_, row);
        static_cast<T*>(p_.out)[(token * p_.query_heads + block_.head(p_, row)) * D + i % D] =
            narrow<P, T>(sum == 0.0f ? 0.0f : o / sum);
      }
    }
    if (partial != nullptr && thread < block_.num_rows) {
      partial[kRowTile * D + thread] = P::shared_load(l + thread);
      partial[kRowTile * (D + 1) + thread] = P::shared_load(r + thread);
    }
  }

 private:
  static constexpr int kTeam = kThreads / kRowTile;  // lanes that share a row
  static_assert(kThreads % kRowTile == 0 && P::kWarpSize % kTeam == 0);

  // The weight of each state [count, 16], and l and r of the result [16].
  template <typename States>
  FDPP_INLINE void weigh(const States& states, int count, bool with_sinks, float* weights, float* l, float* r) const {
    const int row = P::thread_index() / kTeam, member = P::thread_index() % kTeam;
    const bool exists = row < block_.num_rows;
    MergeReference reference;
    for (int s = member; exists && s < count; s += kTeam) {
      reference.add(states.load(s, kRowTile * (D + 1) + row), states.load(s, kRowTile * D + row));
    }
    SinkState sink{0.0f, 0.0f};
    if (with_sinks && exists) {
      const int head = block_.head(p_, row);
      sink = sink_state<WideGuard, P>(p_.sinks[head], p_.phi != nullptr ? p_.phi[head] : 0.0f);
    }
    reference.add(sink.reference, sink.l);
    float most = reference.any ? reference.r_max : -INFINITY;
    FDPP_UNROLL
    for (int mask = 1; mask < kTeam; mask *= 2) {
      const float other = P::shuffle_xor(most, mask);
      most = other > most ? other : most;
    }
    reference = {most > -INFINITY ? most : 0.0f, most > -INFINITY};

    float sum = 0.0f;
    for (int s = member; exists && s < count; s += kTeam) {
      const float part = states.load(s, kRowTile * D + row);
      // A state that saw no key has o = 0, but its r says nothing.
      const float weight = part == 0.0f ? 0.0f : reference.weight<P>(states.load(s, kRowTile * (D + 1) + row));
      P::shared_store(weights + s * kRowTile + row, weight);
      sum += part * weight;
    }
    FDPP_UNROLL
    for (int mask = 1; mask < kTeam; mask *= 2) sum += P::shuffle_xor(sum, mask);
    // Without a key the row is 0.
    if (sink.l != 0.0f && sum != 0.0f) sum += sink.l * reference.weight<P>(sink.reference);
    if (exists && member == 0) {
      P::shared_store(l + row, sum);
      P::shared_store(r + row, reference.r_max);
    }
  }

  const AttentionParams& p_;
  const AttentionBlock& block_;
};

}  // namespace fdpp
