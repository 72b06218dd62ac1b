// Split-KV decode attention with the guarded unified maximum (softmax_state.h), for every GPU: FlashDecoding++ (arXiv
// 2311.01282), section 3. Arch is an architecture (arch.h), T the dtype of the tensors, D the head_dim, kVariant one of
// its tiles (attention_tiles.h).
//
// A block has 16 rows and one split of the keys (attention_block.h). Its warps walk tiles of 16 keys in turn, each
// through shared memory of its own (key_stream.h), and meet only at the end. The last block to finish a unit merges its
// splits.
#pragma once

#include <math.h>

#include "gpu/arch.h"
#include "gpu/attention_block.h"
#include "gpu/attention_merge.h"
#include "gpu/attention_tiles.h"
#include "gpu/key_stream.h"
#include "gpu/row_softmax.h"

namespace fdpp {

template <typename Arch, typename T, int D, int kVariant>
class DecodeAttention {
  static constexpr AttentionTiles kTiles = Arch::attention_tiles(D, kVariant);
  static constexpr int kWarps = kTiles.warps, kStages = kTiles.stages;
  using Fragment = typename Arch::template Fragments<T>;
  using Stream = KeyStream<Arch, T, D, kStages, kTiles.copies>;
  using Softmax = RowSoftmax<Arch, Fragment, D>;
  static constexpr int kStep = kWarps * Stream::kTile;
  static constexpr int kStride = Stream::kStride;
  static constexpr int kQueryBytes = kRowTile * kStride * static_cast<int>(sizeof(T));

 public:
  using Policy = Arch;
  static constexpr int kThreads = kWarps * Arch::kWarpSize;
  static constexpr int kMinBlocksPerSM = kTiles.blocks;
  static constexpr int kSharedBytes = kQueryBytes + kWarps * Stream::kBytes;
  static_assert(kSharedBytes <= kTiles.shared_limit);
  using Merge = AttentionMerge<Arch, T, D, kThreads, kTiles.states>;

  static int64_t grid(const AttentionParams& p) { return attention_units(p) * p.num_splits; }

  FDPP_DEVICE static void run(const AttentionParams& p) {
    Arch::wait_for_producers();
    const AttentionBlock block = attention_block(p, Arch::block_index(), kStep);
    if (block.split >= block.splits) return;
    char* const memory = Arch::shared_memory();
    T* const q = reinterpret_cast<T*>(memory);
    const int warp = Arch::thread_index() / Arch::kWarpSize;
    char* const own = memory + kQueryBytes + warp * Stream::kBytes;

    load_queries(p, block, q);
    const int first = block.keys.begin + warp * Stream::kTile;
    Stream stream(p, block, own, first, kStep);
    FDPP_UNROLL
    for (int stage = 0; stage < kStages - 1; ++stage) stream.fetch(stage);
    Arch::launch_dependents();
    Arch::template copy_wait<kStages - 1>();
    Arch::barrier();

    Softmax softmax(p, block);
    int stage = 0;
    for (int key = first; key < block.keys.end; key += kStep) {
      stream.fetch((stage + kStages - 1) % kStages);
      Arch::template copy_wait<kStages - 1>();
      Arch::warp_sync();
      attend(softmax, q, stream.keys(stage), stream.values(stage), key);
      Arch::warp_sync();
      stage = (stage + 1) % kStages;
    }
    const bool out_of_range = Arch::any(stream.out_of_range()) || block.out_of_range;
    store_state(softmax, block.num_rows, reinterpret_cast<float*>(own), out_of_range ? NAN : 0.0f);
    Arch::barrier();
    merge(p, block, memory);
  }

 private:
  // Rows that do not exist are zero.
  FDPP_INLINE static void load_queries(const AttentionParams& p, const AttentionBlock& block, T* q) {
    constexpr int kChunk = 16 / static_cast<int>(sizeof(T)), kChunks = D / kChunk;
    FDPP_UNROLL
    for (int i = Arch::thread_index(); i < kRowTile * kChunks; i += kThreads) {
      const int row = i / kChunks, element = i % kChunks * kChunk;
      const bool exists = row < block.num_rows;
      const int existing = exists ? row : 0;
      const T* from = static_cast<const T*>(p.q) + block.batch * p.q_batch_stride +
                      block.token(p, existing) * p.q_token_stride + block.head(p, existing) * p.q_head_stride;
      Arch::copy16(q + row * kStride + element, from + element, exists);
    }
    Arch::copy_commit();
  }

  FDPP_INLINE static void attend(Softmax& softmax, const T* q, const T* k, const T* v, int key) {
    float x[Fragment::kValues] = {};
    FDPP_UNROLL
    for (int d = 0; d < D; d += kFragment) Fragment::multiply_scores(x, q + d, k + d, kStride);
    softmax.weigh(x, key);
    const typename Fragment::Probabilities probabilities = Fragment::pack(x);
    FDPP_UNROLL
    for (int f = 0; f < D / kFragment; ++f)
      Fragment::multiply_values(softmax.o[f], probabilities, v + f * kFragment, kStride);
  }

  // The rows that exist. `poison` is NaN where the inputs name what does not exist: a kernel can raise no error.
  FDPP_INLINE static void store_state(const Softmax& softmax, int num_rows, float* state, float poison) {
    const int lane = Arch::thread_index() % Arch::kWarpSize;
    float* const sums = state + Merge::kSumsBegin;
    float l[Fragment::kSlots];
    FDPP_UNROLL
    for (int s = 0; s < Fragment::kSlots; ++s) {
      const int row = Fragment::row(lane, s);
      l[s] = softmax.l(s);
      if (Fragment::leads_row(lane) && row < num_rows) {
        Arch::shared_store(sums + row, l[s] + poison);
        Arch::shared_store(sums + kRowTile + row, softmax.r(s));
      }
    }
    FDPP_UNROLL
    for (int f = 0; f < D / kFragment; ++f) {
      FDPP_UNROLL
      for (int i = 0; i < Fragment::kValues; ++i) {
        const int s = Fragment::slot(i), row = Fragment::row(lane, s);
        if (row >= num_rows) continue;
        // Without a key o is 0 whatever the values of masked keys are.
        Arch::shared_store(state + row * Merge::kRowStride + f * kFragment + Fragment::column(lane, i),
                           l[s] == 0.0f ? 0.0f : softmax.o[f][i]);
      }
    }
  }

  FDPP_INLINE static void merge(const AttentionParams& p, const AttentionBlock& block, char* memory) {
    static_assert(Merge::kWarpStateBytes <= Stream::kBytes && Merge::kScratchBytes <= kWarps * Stream::kBytes &&
                  (Merge::kResultFloats + 1) * static_cast<int>(sizeof(float)) <= kQueryBytes);
    float* const result = reinterpret_cast<float*>(memory);  // where the queries were
    float* const states = reinterpret_cast<float*>(memory + kQueryBytes);
    constexpr int kStateStride = Stream::kBytes / static_cast<int>(sizeof(float));
    const Merge merge(p, block, result);
    if (block.splits == 1) return merge.warps(states, kStateStride, kWarps, nullptr);

    constexpr int64_t kState = attention_state_floats(D);
    float* const partial = p.partial + kState * block.unit * p.num_splits;
    merge.warps(states, kStateStride, kWarps, partial + kState * block.split);
    Arch::publish();
    Arch::barrier();
    int* const last = reinterpret_cast<int*>(result + Merge::kResultFloats);
    if (Arch::thread_index() == 0) Arch::shared_store(last, int{Arch::arrive(p.arrivals + block.unit, block.splits)});
    Arch::barrier();
    if (Arch::shared_load(last) != 0) merge.splits(partial, block.splits, states);
  }
};

}  // namespace fdpp
