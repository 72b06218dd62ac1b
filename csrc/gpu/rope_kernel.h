// rope_append (RoFormer, arXiv 2104.09864) on a GPU: a block per token and head of q, k or v. Arch is an architecture
// (arch.h), T the dtype.
#pragma once

#include <math.h>

#include "common/params.h"
#include "gpu/chunks.h"

namespace fdpp {

template <typename Arch, typename T>
class RopeAppend {
 public:
  using Policy = Arch;
  static constexpr int kThreads = 64;
  static constexpr int kMinBlocksPerSM = 1;
  static constexpr int kSharedBytes = 0;

  static int64_t grid(const RopeParams& p) { return int64_t{p.batch} * p.query_len * (p.query_heads + 2 * p.kv_heads); }

  FDPP_DEVICE static void run(const RopeParams& p) {
    Arch::wait_for_producers();
    Arch::launch_dependents();
    const int heads = p.query_heads + 2 * p.kv_heads, head = Arch::block_index() % heads;
    const int64_t token = Arch::block_index() / heads, b = token / p.query_len, s = token % p.query_len;
    const int position = p.positions[b * p.positions_stride + s];
    const Slot slot = slot_of(p, b, position);
    if (head < p.query_heads) {
      const T* const q = static_cast<const T*>(p.q) + offset(p.q_strides, b, s, head);
      T* const out = static_cast<T*>(p.out) + (token * p.query_heads + head) * p.head_dim;
      // A kernel can raise no error: a position or page that does not exist shows in the result.
      if (position >= 0 && slot.block < 0) return fill(out, p.head_dim);
      return rotate(p, out, q, position < 0 ? 0 : p.rotated_dim, position);
    }
    if (slot.block < 0) return;
    const int kv_head = (head - p.query_heads) % p.kv_heads;
    if (head < p.query_heads + p.kv_heads) {
      const T* const k = static_cast<const T*>(p.k) + offset(p.k_strides, b, s, kv_head);
      rotate(p, at(p.k_cache, slot, kv_head), k, p.rotated_dim, position);
    } else {
      rotate(p, at(p.v_cache, slot, kv_head), static_cast<const T*>(p.v) + offset(p.v_strides, b, s, kv_head), 0,
             position);
    }
  }

 private:
  struct Slot {
    int block;  // negative: there is none
    int64_t offset;
  };

  FDPP_INLINE static Slot slot_of(const RopeParams& p, int64_t b, int position) {
    if (position < 0 || position >= p.position_limit) return {-1, 0};
    if (p.layout.block_table == nullptr) return {static_cast<int>(b), position};
    const int64_t page = position / p.layout.page_size;
    const int block = p.layout.block_table[b * p.layout.block_table_stride + page];
    return {block < p.layout.num_blocks ? block : -1, position - page * p.layout.page_size};
  }

  FDPP_INLINE static int64_t offset(const int64_t (&strides)[3], int64_t b, int64_t s, int head) {
    return b * strides[0] + s * strides[1] + head * strides[2];
  }

  FDPP_INLINE static T* at(const CacheView& cache, const Slot& slot, int head) {
    return static_cast<T*>(cache.data) + slot.block * cache.block_stride + slot.offset * cache.token_stride +
           head * cache.head_stride;
  }

  FDPP_INLINE static void fill(T* to, int count) {
    for (int i = Arch::thread_index(); i < count; i += kThreads) to[i] = narrow<Arch, T>(NAN);
  }

  // (a, b) -> (a cos - b sin, b cos + a sin) for the pairs (i, i + half) or (2 i, 2 i + 1) below `rotated`; the rest is
  // copied.
  FDPP_INLINE static void rotate(const RopeParams& p, T* to, const T* from, int rotated, int position) {
    const int half = rotated / 2;
    for (int i = Arch::thread_index(); i < half; i += kThreads) {
      const int64_t angle = int64_t{position} * half + i;
      const int first = p.interleaved ? 2 * i : i, second = p.interleaved ? 2 * i + 1 : i + half;
      const float a = widen<Arch>(from[first]), b = widen<Arch>(from[second]), cos = p.cos[angle], sin = p.sin[angle];
      to[first] = narrow<Arch, T>(a * cos - b * sin);
      to[second] = narrow<Arch, T>(b * cos + a * sin);
    }
    for (int i = rotated + Arch::thread_index(); i < p.head_dim; i += kThreads) to[i] = from[i];
  }
};

}  // namespace fdpp
