// Split-KV decode attention with the guarded unified maximum (common/softmax_state.h), for one instruction set.
//
// A unit of work is one split of some kv heads of a sequence, which it takes in turn for each tile of keys. The query
// heads of a kv head times the new tokens are its rows, so each key and value is read once from memory; while a tile is
// computed the next one is fetched. Per row of a tile: logits, guard, probabilities, o += p V.
#pragma once

#include <math.h>

#include "common/params.h"
#include "common/softmax_state.h"
#include "common/split_plan.h"
#include "cpu/cache.h"
#include "cpu/kernels.h"
#include "cpu/linear_kernels.h"
#include "cpu/math.h"

namespace fdpp::cpu {

template <typename V, typename T, int D>
struct AttentionKernels {
  using F = typename V::F;
  using Product = cpu::Product<V, T>;
  using Packed = typename Product::Packed;
  static constexpr int kTile = kAttentionTile;
  static constexpr int kRows = 4;                    // rows that share the loads of V
  static constexpr int kVectors = 4;                 // vectors of a head that o += p V keeps in registers
  static constexpr int kDotKeys = 4;                 // keys whose products with q are formed at once
  static constexpr int kDotRows = V::registers / 8;  // rows that share the loads of K: half of the registers are sums
  static constexpr int kLineBytes = 64, kHeadBytes = D * static_cast<int>(sizeof(T));
  static_assert(kLeastAttentionTile % V::width == 0 && D % V::width == 0);

  // A row's record in params.partial: its state, and its query as the dot products want it.
  struct Row {
    float o[D];
    float l, r;
    float unused[14];
    float packed_q[D + 16];

    FDPP_INLINE Packed* q() { return reinterpret_cast<Packed*>(packed_q); }

    FDPP_INLINE static Row* of(const AttentionParams& p, int b, int h, int split) {
      const int64_t rows = int64_t{p.query_heads / p.kv_heads} * p.query_len;
      const int64_t unit = (int64_t{b} * p.kv_heads + h) * p.num_splits + split;
      return reinterpret_cast<Row*>(p.partial) + unit * rows;
    }
  };
  static_assert(sizeof(Row) == attention_row_floats(D) * sizeof(float));
  static_assert((D + Product::step - 1) / Product::step * Product::step * sizeof(Packed) <= sizeof(Row::packed_q));

  // Lines of the next tile to fetch while so many bytes of keys, or of values, are computed: memory should never idle,
  // and values take about three quarters of the time.
  static constexpr int lines_ahead_of_keys(int bytes) { return (bytes / 2 + kLineBytes - 1) / kLineBytes; }
  static constexpr int lines_ahead_of_values(int bytes) { return (bytes * 3 / 2 + kLineBytes - 1) / kLineBytes; }

  // The keys and values of the first kv head of a unit.
  struct Tile {
    const T* tokens[2 * kTile];  // key 0, value 0, key 1, ...
    int64_t begin;
    int keys;

    FDPP_INLINE const T* k(int j) const { return tokens[2 * j]; }
    FDPP_INLINE const T* v(int j) const { return tokens[2 * j + 1]; }
  };

  // What a row sees of a tile, [low, high] relative to its first key, and the constants of its logits.
  struct RowView {
    int low, high;
    float scale, alibi, distance;
  };

  // Fetches a tile into the L2 cache in the order in which it lies in memory, a few lines at a time while another one
  // is computed: one head's keys alone are too short and too far apart for a prefetcher to follow.
  struct Ahead {
    const T* const* token;
    const T* const* last;
    int64_t bytes;  // of a token's heads, which are adjacent
    const char *at = nullptr, *end = nullptr;

    FDPP_INLINE Ahead(const Tile& tile, int heads)
        : token(tile.tokens), last(token + 2 * tile.keys), bytes(heads * kHeadBytes) {}

    FDPP_INLINE void fetch_all() const {
      for (const T* const* next = token; next != last; ++next) {
        const char* heads = reinterpret_cast<const char*>(*next);
        for (int64_t i = 0; i < bytes; i += kLineBytes) __builtin_prefetch(heads + i, 0, 2);
      }
    }

    FDPP_INLINE void fetch(int lines) {
      for (; lines > 0; --lines, at += kLineBytes) {
        if (at >= end) {
          if (token == last) return;
          at = reinterpret_cast<const char*>(*token++);
          end = at + bytes;
        }
        __builtin_prefetch(at, 0, 2);
      }
    }
  };

  // Pointers to the keys of a tile; the places after the last key repeat it, so that whole vectors can be read.
  FDPP_INLINE static void locate(Tile& tile, const AttentionParams& p, int b, int h, int64_t begin, int64_t end) {
    tile.begin = begin;
    tile.keys = static_cast<int>(end - begin < p.tile ? end - begin : p.tile);
    if (tile.keys == 0) return;
    Slot slot = slot_of(p.layout, b, begin);
    for (int j = 0; j < tile.keys; ++j) {
      tile.tokens[2 * j] = slot_pointer<T>(p.k, slot) + h * p.k.head_stride;
      tile.tokens[2 * j + 1] = slot_pointer<T>(p.v, slot) + h * p.v.head_stride;
      if (++slot.offset == p.layout.page_size && j + 1 < tile.keys) slot = slot_of(p.layout, b, begin + j + 1);
    }
    for (int j = tile.keys; j < p.tile; ++j) tile.tokens[2 * j] = tile.k(tile.keys - 1);
  }

  // sums += q k of the elements from d on, for `Rows` rows and kDotKeys keys; `n` > 0: of that many elements.
  template <int Rows>
  FDPP_INLINE static void multiply(F (&sums)[Rows][kDotKeys], Row* rows, const T* const (&k)[kDotKeys], int d,
                                   int n = 0) {
    typename Product::Operand q[Rows];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) q[r] = V::in_register(Product::load_x(rows[r].q() + d));
#pragma GCC unroll 4
    for (int i = 0; i < kDotKeys; ++i) {
      const auto key = V::in_register(n > 0 ? Product::load_weight(k[i] + d, n) : Product::load_weight(k[i] + d));
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) sums[r][i] = Product::mac(sums[r][i], q[r], key);
    }
  }

  // t = q . k of `Rows` rows for a tile; `offset` leads from the first head to theirs. Each product has its own sums,
  // added up in the same order whichever rows share the loads.
  template <int Rows>
  FDPP_INLINE static void dots(float (*t)[kTile], Row* rows, const Tile& tile, int64_t offset, Ahead& ahead) {
    constexpr int kFullVectors = D / Product::step * Product::step;
    for (int j = 0; j < tile.keys; j += V::width) {
      F fours[Rows][V::width / kDotKeys];
      for (int i = 0; i < V::width; i += kDotKeys) {
        ahead.fetch(lines_ahead_of_keys(kDotKeys * kHeadBytes));
        const T* k[kDotKeys];
        F sums[Rows][kDotKeys];
#pragma GCC unroll 4
        for (int key = 0; key < kDotKeys; ++key) {
          k[key] = tile.k(j + i + key) + offset;
#pragma GCC unroll 4
          for (int r = 0; r < Rows; ++r) sums[r][key] = V::zero();
        }
        for (int d = 0; d < kFullVectors; d += Product::step) multiply<Rows>(sums, rows, k, d);
        if constexpr (kFullVectors < D) multiply<Rows>(sums, rows, k, kFullVectors, D - kFullVectors);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r)
          fours[r][i / kDotKeys] = V::sum_four(sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
      }
      for (int r = 0; r < Rows; ++r) V::store(t[r] + j, V::join_fours(fours[r]));
    }
  }

  // As above for 1 to kRows rows, as many at once as the registers hold sums for.
  template <int Rows = kDotRows>
  FDPP_INLINE static void dots(int count, float (*t)[kTile], Row* rows, const Tile& tile, int64_t offset,
                               Ahead& ahead) {
    for (; count >= Rows; count -= Rows, t += Rows, rows += Rows) dots<Rows>(t, rows, tile, offset, ahead);
    if constexpr (Rows > 1) dots<Rows - 1>(count, t, rows, tile, offset, ahead);
  }

  // t = q . k -> logit * log2(e) of one row for a tile, -infinity where masked; returns the maximum.
  FDPP_INLINE static float logits(float* t, int keys, const RowView& view, float softcap) {
    F most = V::broadcast(-INFINITY);
    for (int j = 0; j < keys; j += V::width) {
      F x = V::load(t + j);
      if (softcap > 0.0f) {
        x = tanh<V>(V::mul(x, V::broadcast(view.scale / softcap)));
        x = V::mul(x, V::broadcast(softcap * kLog2e));
      } else {
        x = V::mul(x, V::broadcast(view.scale * kLog2e));
      }
      const F lane = V::add(V::lane_index(), V::broadcast(static_cast<float>(j)));
      if (view.alibi != 0.0f) {
        x = V::fma(V::add(lane, V::broadcast(view.distance)), V::broadcast(view.alibi), x);
      }
      x = V::select_between(lane, V::broadcast(static_cast<float>(view.low)),
                            V::broadcast(static_cast<float>(view.high)), x, V::broadcast(-INFINITY));
      V::store(t + j, x);
      most = V::max(x, most);
    }
    return V::max(most);
  }

  // t -> 2^(t - r) in place; returns the sum.
  FDPP_INLINE static float probabilities(float* t, int keys, float reference) {
    F total = V::zero();
    for (int j = 0; j < keys; j += V::width) {
      const F x = exp2<V>(V::sub(V::load(t + j), V::broadcast(reference)));
      V::store(t + j, x);
      total = V::add(total, x);
    }
    return V::sum(total);
  }

  // o = o * rescale + p V for `Rows` rows and `Vectors` vectors of the head, beginning at element d.
  template <int Rows, int Vectors>
  FDPP_INLINE static void accumulate(Row* rows, const float (*p)[kTile], const float* rescale, const Tile& tile,
                                     int64_t offset, int d, Ahead& ahead) {
    F o[Rows][Vectors];
    for (int r = 0; r < Rows; ++r) {
      for (int c = 0; c < Vectors; ++c) {
        o[r][c] = V::mul(V::load(rows[r].o + d + c * V::width), V::broadcast(rescale[r]));
      }
    }
    for (int j = 0; j < tile.keys; ++j) {
      ahead.fetch(lines_ahead_of_values(Vectors * V::width * static_cast<int>(sizeof(T))));
      const T* token = tile.v(j) + offset + d;
      F v[Vectors];
#pragma GCC unroll 8
      for (int c = 0; c < Vectors; ++c) v[c] = V::load(token + c * V::width);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const F weight = V::broadcast(p[r][j]);
#pragma GCC unroll 8
        for (int c = 0; c < Vectors; ++c) o[r][c] = V::fma(weight, v[c], o[r][c]);
      }
    }
    for (int r = 0; r < Rows; ++r) {
      for (int c = 0; c < Vectors; ++c) V::store(rows[r].o + d + c * V::width, o[r][c]);
    }
  }

  // As above for the whole head and `count` of up to `Rows` rows.
  template <int Rows = kRows>
  FDPP_INLINE static void accumulate(int count, Row* rows, const float (*p)[kTile], const float* rescale,
                                     const Tile& tile, int64_t offset, Ahead& ahead) {
    if (count < Rows) {
      if constexpr (Rows > 1) accumulate<Rows - 1>(count, rows, p, rescale, tile, offset, ahead);
      return;
    }
    constexpr int kStride = kVectors * V::width;
    constexpr int kFullVectors = D / kStride * kStride;
    for (int d = 0; d < kFullVectors; d += kStride)
      accumulate<Rows, kVectors>(rows, p, rescale, tile, offset, d, ahead);
    if constexpr (kFullVectors < D)
      accumulate<Rows, (D - kFullVectors) / V::width>(rows, p, rescale, tile, offset, kFullVectors, ahead);
  }

  static void split(const AttentionParams& p, int b, int first_head, int heads, int split) {
    const int num_rows = p.query_heads / p.kv_heads * p.query_len;
    for (int h = first_head; h < first_head + heads; ++h) {
      Row* rows = Row::of(p, b, h, split);
      for (int row = 0; row < num_rows; ++row) start(rows[row], p, b, h, row);
    }
    const int64_t length = p.cache_seqlens[b], first_query = length - p.query_len;
    const int64_t first_key = p.window >= 0 && first_query > p.window ? first_query - p.window : 0;
    const KeyRange range = split_range(first_key, length, split, p.num_splits, kTile);
    Tile tiles[2];
    locate(tiles[0], p, b, first_head, range.begin, range.end);
    Ahead(tiles[0], heads).fetch_all();
    for (int index = 0; tiles[index].keys != 0; index ^= 1) {
      const Tile& tile = tiles[index];
      Tile& next = tiles[index ^ 1];
      locate(next, p, b, first_head, tile.begin + tile.keys, range.end);
      Ahead ahead(next, heads);
      for (int i = 0; i < heads; ++i) {
        attend(p, Row::of(p, b, first_head + i, split), tile, b, first_head, first_head + i, ahead);
      }
    }
  }

  // A tile of one kv head.
  FDPP_INLINE static void attend(const AttentionParams& p, Row* rows, const Tile& tile, int b, int first_head, int h,
                                 Ahead& ahead) {
    const int group = p.query_heads / p.kv_heads, num_rows = group * p.query_len;
    const int64_t first_query = int64_t{p.cache_seqlens[b]} - p.query_len;
    const int64_t k_offset = (h - first_head) * p.k.head_stride, v_offset = (h - first_head) * p.v.head_stride;
    alignas(64) float t[kRows][kTile];
    float rescale[kRows];
    for (int block = 0; block < num_rows; block += kRows) {
      const int count = num_rows - block < kRows ? num_rows - block : kRows;
      dots(count, t, rows + block, tile, k_offset, ahead);
      for (int i = 0; i < count; ++i) {
        const int row = block + i, head = h * group + row % group;
        rescale[i] = weigh(rows[row], t[i], p, tile, head, first_query + row / group);
      }
      accumulate(count, rows + block, t, rescale, tile, v_offset, ahead);
    }
  }

  FDPP_INLINE static void start(Row& row, const AttentionParams& p, int b, int h, int index) {
    const int group = p.query_heads / p.kv_heads, head = h * group + index % group, token = index / group;
    for (float& value : row.o) value = 0.0f;
    row.l = 0.0f;
    row.r = p.phi != nullptr ? first_reference(p.phi[head]) : 0.0f;
    const T* q = static_cast<const T*>(p.q) + b * p.q_batch_stride + token * p.q_token_stride + head * p.q_head_stride;
    int d = 0;
    for (; d + Product::step <= D; d += Product::step) Product::pack(row.q() + d, q + d);
    if (d < D) Product::pack(row.q() + d, q + d, D - d);
  }

  // Fills t with the probabilities of one row for a tile, updates its l and r, returns the factor for its o.
  FDPP_INLINE static float weigh(Row& row, float* t, const AttentionParams& p, const Tile& tile, int head,
                                 int64_t query) {
    int64_t low = p.window >= 0 ? query - p.window - tile.begin : 0;
    int64_t high = query - tile.begin;
    low = low > 0 ? low : 0;
    high = high < tile.keys - 1 ? high : tile.keys - 1;
    if (low > high) {
      for (int j = 0; j < kTile; ++j) t[j] = 0.0f;
      return 1.0f;
    }
    RowView view;
    view.low = static_cast<int>(low);
    view.high = static_cast<int>(high);
    view.scale = p.softmax_scale;
    view.alibi = p.alibi_slopes != nullptr ? p.alibi_slopes[head] * kLog2e : 0.0f;
    view.distance = static_cast<float>(tile.begin - query);
    const float tile_max = logits(t, tile.keys, view, p.softcap);
    const Rereference next = guard<WideGuard>(row.r, row.l == 0.0f, tile_max);
    row.r = next.reference;
    row.l = row.l * next.rescale + probabilities(t, tile.keys, row.r);
    if (next.moved && p.rereference_count != nullptr) {
      __atomic_fetch_add(p.rereference_count + head, int64_t{1}, __ATOMIC_RELAXED);
    }
    return next.rescale;
  }

  static void merge(const AttentionParams& p, int b, int h) {
    const int group = p.query_heads / p.kv_heads;
    const Row* splits = Row::of(p, b, h, 0);
    const int64_t num_rows = int64_t{group} * p.query_len;
    for (int64_t index = 0; index < num_rows; ++index) {
      const int head = h * group + static_cast<int>(index % group);
      SinkState sink{0.0f, 0.0f};
      if (p.sinks != nullptr) {
        sink = sink_state<WideGuard>(p.sinks[head], p.phi != nullptr ? p.phi[head] : 0.0f);
      }
      MergeReference reference;
      for (int s = 0; s < p.num_splits; ++s)
        reference.add(splits[s * num_rows + index].r, splits[s * num_rows + index].l);
      reference.add(sink.reference, sink.l);
      float l = 0.0f;
      F o[D / V::width];
      for (F& value : o) value = V::zero();
      for (int s = 0; s < p.num_splits; ++s) {
        const Row& row = splits[s * num_rows + index];
        if (row.l == 0.0f) continue;
        const float weight = reference.weight(row.r);
        l += row.l * weight;
        for (int d = 0; d < D; d += V::width) {
          o[d / V::width] = V::fma(V::load(row.o + d), V::broadcast(weight), o[d / V::width]);
        }
      }
      if (l != 0.0f && sink.l != 0.0f) l += sink.l * reference.weight(sink.reference);  // without a key the row is 0
      const F inverse = V::broadcast(l == 0.0f ? 0.0f : 1.0f / l);
      T* out = static_cast<T*>(p.out) + ((int64_t{b} * p.query_len + index / group) * p.query_heads + head) * D;
      for (int d = 0; d < D; d += V::width) V::store(out + d, V::mul(o[d / V::width], inverse));
    }
  }
};

}  // namespace fdpp::cpu
