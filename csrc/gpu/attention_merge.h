// Merging states (r, l, o) of the 16 rows of a block: those of its warps, and those of the splits of a sequence. Sums
// have a fixed order, so that results do not depend on who was first.
//
// A trip to the memory that blocks share takes longer than all arithmetic of a merge. So l and r of the splits come in
// one trip, together with the first o of every thread; and where rows are few, threads share the states of an element.
#pragma once

#include <math.h>

#include "common/softmax_state.h"
#include "gpu/attention_block.h"
#include "gpu/chunks.h"

namespace fdpp {

// kLoads: AttentionTiles::states.
template <typename Arch, typename T, int D, int kThreads, int kLoads>
class AttentionMerge {
  static constexpr int kStagedFloats = kRowTile * (kMaxSplits + 8);  // l, or r, of all splits: see load_sums()

 public:
  // The state of a warp in shared memory: o [16, kRowStride], l [16], r [16]. The stride spreads a column over the
  // banks.
  static constexpr int kRowStride = D + 4;
  static constexpr int kSumsBegin = kRowTile * kRowStride;
  static constexpr int kWarpStateBytes = (kSumsBegin + 2 * kRowTile) * static_cast<int>(sizeof(float));
  // What merges need beside the states: l and r of the result; and of splits, l and r of each.
  static constexpr int kResultFloats = 2 * kRowTile;
  static constexpr int kScratchBytes = 2 * kStagedFloats * static_cast<int>(sizeof(float));

  // `result` is shared memory of kResultFloats.
  FDPP_INLINE AttentionMerge(const AttentionParams& params, const AttentionBlock& block, float* result)
      : p_(params), block_(block), result_(result) {}

  // Merges the states of `count` warps, `stride` floats apart. The merged state goes to `partial`, or, when that is
  // null, becomes the output. For the whole block; r of the states is overwritten.
  FDPP_INLINE void warps(float* states, int stride, int count, float* partial) const {
    const Sums sums{states + kSumsBegin, states + kSumsBegin + kRowTile, stride, 1};
    weigh(sums, count, partial == nullptr ? sink() : SinkState{0.0f, 0.0f});
    Arch::barrier();
    const Share share = share_of(count);
    const WarpStates from{states, stride};
    Bytes16 o[kLoads];
    load(o, from, share, share.vector, share.team, count);
    add_up(o, from, sums, share, count, partial, nullptr);
    const int row = Arch::thread_index();
    // All rows: the sums travel by vectors, in which rows that exist may lie beside others.
    if (partial != nullptr && row < kRowTile) {
      partial[kRowTile * D + row] = Arch::shared_load(result_ + row);
      partial[kRowTile * (D + 1) + row] = Arch::shared_load(result_ + kRowTile + row);
    }
  }

  // Merges the states of `count` splits into the output, with all threads. `scratch` is shared memory of kScratchBytes.
  FDPP_INLINE void splits(const float* states, int count, float* scratch) const {
    const Sums sums{scratch, scratch + kStagedFloats, 1, kMaxSplits + 8};
    const Share share = share_of(count);
    const SplitStates from{states};
    Bytes16 some[kStaged];
    load_sums(some, states, 0, count);
    Bytes16 o[kLoads];
    load(o, from, share, share.vector, share.team, count);
    const SinkState sink = this->sink();
    store_sums(some, sums, 0, count);
    for (int begin = kStaged * kThreads; begin < count * kSumVectors; begin += kStaged * kThreads) {
      load_sums(some, states, begin, count);
      store_sums(some, sums, begin, count);
    }
    Arch::barrier();
    weigh(sums, count, sink);
    Arch::barrier();
    add_up(o, from, sums, share, count, nullptr, scratch);
  }

 private:
  static constexpr int kVector = 4;  // floats of 16 bytes
  static constexpr int kVectors = D / kVector;
  static constexpr int kSumVectors = 2 * kRowTile / kVector;  // l and r of a state
  static constexpr int kStaged = 2;                           // of those, on their way to one thread together
  static constexpr int kTeam = kThreads / kRowTile;           // lanes that share a row
  static_assert(kThreads % kRowTile == 0 && Arch::kWarpSize % kTeam == 0 && kStagedFloats >= kThreads * kVector);

  // l and r of states in shared memory, r after l's. Weights take the place of r.
  struct Sums {
    float *l, *r;
    int state_stride, row_stride;
    FDPP_INLINE int at(int state, int row) const { return state * state_stride + row * row_stride; }
  };

  struct WarpStates {
    const float* first;
    int stride;
    FDPP_INLINE Bytes16 load(int state, int vector) const {
      const int row = vector / kVectors, element = vector % kVectors * kVector;
      return Arch::shared_load(reinterpret_cast<const Bytes16*>(first + state * stride + row * kRowStride + element));
    }
  };
  struct SplitStates {
    const float* first;
    FDPP_INLINE Bytes16 load(int state, int vector) const {
      return Arch::coherent_load16(first + state * attention_state_floats(D) + vector * kVector);
    }
  };

  // What a thread adds up: the vectors `vector`, `vector` + kThreads ... of o, of the states `team`, `team` + `teams`
  // ...
  struct Share {
    int vectors, teams, team, vector;
  };
  FDPP_INLINE Share share_of(int count) const {
    const int vectors = block_.num_rows * kVectors, idle = kThreads / vectors, useful = (count + kLoads - 1) / kLoads;
    const int teams = idle < useful ? idle : useful, thread = Arch::thread_index(), team = thread / vectors;
    if (teams <= 1) return {vectors, 1, 0, thread};
    return {vectors, teams, team, team < teams ? thread % vectors : vectors};
  }

  template <typename States>
  FDPP_INLINE static void load(Bytes16 (&o)[kLoads], const States& states, const Share& share, int vector, int first,
                               int count) {
    FDPP_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const int state = first + i * share.teams;
      if (vector < share.vectors && state < count) o[i] = states.load(state, vector);
    }
  }

  // The weighted sum of o, which starts with the states that are in `o` already. Teams meet in `scratch`.
  template <typename States>
  FDPP_INLINE void add_up(Bytes16 (&o)[kLoads], const States& states, const Sums& sums, const Share& share, int count,
                          float* partial, float* scratch) const {
    float sum[kVector] = {};
    int first = share.team;
    for (int vector = share.vector; vector < share.vectors;) {
      FDPP_UNROLL
      for (int i = 0; i < kLoads; ++i) {
        const int state = first + i * share.teams;
        if (state < count) {
          const float weight = Arch::shared_load(sums.r + sums.at(state, vector / kVectors));
          FDPP_UNROLL
          for (int e = 0; e < kVector; ++e) sum[e] += weight * bits_to_float(o[i].words[e]);
        }
      }
      first += kLoads * share.teams;
      if (first >= count) {
        if (share.teams > 1) {
          Arch::shared_store(reinterpret_cast<Bytes16*>(scratch) + share.team * share.vectors + vector, bytes(sum));
        } else {
          emit(sum, vector, partial);
        }
        FDPP_UNROLL
        for (int e = 0; e < kVector; ++e) sum[e] = 0.0f;
        first = share.team;
        vector += kThreads;
      }
      load(o, states, share, vector, first, count);
    }
    if (share.teams == 1) return;
    Arch::barrier();
    const int vector = Arch::thread_index();
    if (vector >= share.vectors) return;
    for (int team = 0; team < share.teams; ++team) {
      const Bytes16 part = Arch::shared_load(reinterpret_cast<const Bytes16*>(scratch) + team * share.vectors + vector);
      FDPP_UNROLL
      for (int e = 0; e < kVector; ++e) sum[e] += bits_to_float(part.words[e]);
    }
    emit(sum, vector, partial);
  }

  FDPP_INLINE void emit(const float (&o)[kVector], int vector, float* partial) const {
    if (partial != nullptr) return Arch::store16(partial + vector * kVector, bytes(o));
    const int row = vector / kVectors;
    const float sum = Arch::shared_load(result_ + row);
    const int64_t token = int64_t{block_.batch} * p_.query_len + block_.token(p_, row);
    T* const out =
        static_cast<T*>(p_.out) + (token * p_.query_heads + block_.head(p_, row)) * D + vector % kVectors * kVector;
    FDPP_UNROLL
    for (int e = 0; e < kVector; ++e) out[e] = narrow<Arch, T>(sum == 0.0f ? 0.0f : o[e] / sum);
  }

  FDPP_INLINE static Bytes16 bytes(const float (&x)[kVector]) {
    return {{float_to_bits(x[0]), float_to_bits(x[1]), float_to_bits(x[2]), float_to_bits(x[3])}};
  }

  // l and r of all states, vector by vector, from where they lie as [l [16], r [16]] to shared memory. There, states
  // are what varies fastest, and rows kMaxSplits + 8 apart: so lanes that weigh states of several rows meet different
  // banks.
  FDPP_INLINE void load_sums(Bytes16 (&x)[kStaged], const float* states, int begin, int count) const {
    FDPP_UNROLL
    for (int i = 0; i < kStaged; ++i) {
      const int item = begin + i * kThreads + Arch::thread_index(), state = item / kSumVectors,
                vector = item % kSumVectors;
      if (stored(vector) && state < count) {
        x[i] = Arch::coherent_load16(states + state * attention_state_floats(D) + kRowTile * D + vector * kVector);
      }
    }
  }
  FDPP_INLINE void store_sums(const Bytes16 (&x)[kStaged], const Sums& sums, int begin, int count) const {
    FDPP_UNROLL
    for (int i = 0; i < kStaged; ++i) {
      const int item = begin + i * kThreads + Arch::thread_index(), state = item / kSumVectors,
                vector = item % kSumVectors;
      if (!stored(vector) || state >= count) continue;
      float* const to = vector * kVector < kRowTile ? sums.l : sums.r;
      FDPP_UNROLL
      for (int e = 0; e < kVector; ++e) {
        Arch::shared_store(to + sums.at(state, vector * kVector % kRowTile + e), bits_to_float(x[i].words[e]));
      }
    }
  }
  // Whether one of its four rows exists.
  FDPP_INLINE bool stored(int vector) const { return vector * kVector % kRowTile < block_.num_rows; }

  // The sink of the row whose states this thread weighs: none of a row that does not exist.
  FDPP_INLINE SinkState sink() const {
    const int row = Arch::thread_index() / kTeam;
    if (p_.sinks == nullptr || row >= block_.num_rows) return {0.0f, 0.0f};
    const int head = block_.head(p_, row);
    return sink_state<WideGuard, Arch>(p_.sinks[head], p_.phi != nullptr ? p_.phi[head] : 0.0f);
  }

  // r of each state becomes its weight; l and r of the result.
  FDPP_INLINE void weigh(const Sums& sums, int count, const SinkState& sink) const {
    const int row = Arch::thread_index() / kTeam, member = Arch::thread_index() % kTeam;
    const bool exists = row < block_.num_rows;
    MergeReference reference;
    for (int s = member; exists && s < count; s += kTeam) {
      reference.add(Arch::shared_load(sums.r + sums.at(s, row)), Arch::shared_load(sums.l + sums.at(s, row)));
    }
    reference.add(sink.reference, sink.l);
    float most = reference.any ? reference.r_max : -INFINITY;
    FDPP_UNROLL
    for (int mask = 1; mask < kTeam; mask *= 2) {
      const float other = Arch::shuffle_xor(most, mask);
      most = other > most ? other : most;
    }
    reference = {most > -INFINITY ? most : 0.0f, most > -INFINITY};

    float sum = 0.0f;
    for (int s = member; exists && s < count; s += kTeam) {
      float* const r = sums.r + sums.at(s, row);
      const float part = Arch::shared_load(sums.l + sums.at(s, row));
      // A state that saw no key has o = 0, but its r says nothing.
      const float weight = part == 0.0f ? 0.0f : reference.weight<Arch>(Arch::shared_load(r));
      Arch::shared_store(r, weight);
      sum += part * weight;
    }
    FDPP_UNROLL
    for (int mask = 1; mask < kTeam; mask *= 2) sum += Arch::shuffle_xor(sum, mask);
    // Without a key the row is 0.
    if (sink.l != 0.0f && sum != 0.0f) sum += sink.l * reference.weight<Arch>(sink.reference);
    if (member == 0) {
      Arch::shared_store(result_ + row, sum);
      Arch::shared_store(result_ + kRowTile + row, reference.r_max);
    }
  }

  const AttentionParams& p_;
  const AttentionBlock& block_;
  float* const result_;
};

}  // namespace fdpp
