// y = x W^T + b for few rows of x: the GEMV and the flat GEMM of one instruction set.
//
// Both stream W once and are bound by memory. x is packed first: converted to what the multiply wants and padded with
// zeros to whole vectors, so that only the weights need care at the end of a row.
//
// The flat GEMM walks K in blocks whose share of x stays in the L1 cache, and inside a block from tile to tile of a few
// rows of W. While it multiplies one tile it fetches the next: the double buffer of a processor.
#pragma once

#include "common/params.h"
#include "cpu/kernels.h"
#include "cpu/math.h"

namespace fdpp::cpu {

// How a product is formed: by default in float32. An instruction set with dot products of a narrow type specialises it.
template <typename V, typename T>
struct Product {
  using Packed = float;
  using Operand = typename V::F;
  static constexpr int step = V::width;  // elements of K per operand

  FDPP_INLINE static Operand load_x(const Packed* p) { return V::load(p); }
  FDPP_INLINE static Operand load_weight(const T* p) { return V::load(p); }
  FDPP_INLINE static Operand load_weight(const T* p, int n) { return V::load(p, n); }
  FDPP_INLINE static typename V::F mac(typename V::F sum, Operand x, Operand w) { return V::fma(x, w, sum); }

  FDPP_INLINE static void pack(Packed* to, const T* from, int n) { V::store(to, V::load(from, n)); }
  FDPP_INLINE static void pack(Packed* to, const T* from) { V::store(to, V::load(from)); }
};

template <typename V, typename T>
struct LinearKernels {
  using Product = cpu::Product<V, T>;
  using Packed = typename Product::Packed;

  FDPP_INLINE static int64_t padded(int64_t k) { return (k + Product::step - 1) / Product::step * Product::step; }

  static int64_t packed_x_bytes(const LinearParams& p) {
    return p.M * padded(p.K) * static_cast<int64_t>(sizeof(Packed));
  }

  // [block of K][block of rows][K / step][row][step]: a tile reads its x as one stream. (Rows at their own stride,
  // often a power of two, would all compete for the same sets of the L1 cache.)
  static void pack_x(const LinearParams& p, int config) {
    const Blocks rows = row_blocks(p, config), depth = depth_blocks(p, config);
    Packed* to = static_cast<Packed*>(p.packed_x);
    for (int64_t kb = 0; kb < depth.count; ++kb) {
      for (int64_t mb = 0; mb < rows.count; ++mb) {
        for (int64_t k = depth.begin(kb); k < depth.begin(kb + 1); k += Product::step) {
          for (int64_t m = rows.begin(mb); m < rows.begin(mb + 1); ++m, to += Product::step) {
            const T* from = static_cast<const T*>(p.x) + m * p.x_stride + k;
            if (k + Product::step <= p.K) {
              Product::pack(to, from);
            } else {
              Product::pack(to, from, static_cast<int>(p.K - k));
            }
          }
        }
      }
    }
  }

  static void gemv(const LinearParams& p, int64_t begin, int64_t end) {
    int64_t n = begin;
    for (; n + V::width <= end; n += V::width) whole_tiles<V::width>(p, n);
    for (; n < end; ++n) whole_tiles<1>(p, n);
  }

  template <int Config = 0>
  static void flat_gemm(const LinearParams& p, int config, int64_t begin, int64_t end) {
    if constexpr (Config < kNumFlatGemmConfigs) {
      if (config == Config) return flat_gemm_with<Config>(p, begin, end);
      flat_gemm<Config + 1>(p, config, begin, end);
    }
  }

 private:
  static constexpr int kMaxTileRows = V::registers / 4;  // of x; with a row of W more, all sums fit
  static constexpr int kParts = 4;                       // sums of a row of GEMV that do not wait for each other
  static constexpr int kGemvRows = V::registers / 8;     // of x that share a load of W: all their sums fit
  static constexpr int kGemvGroup = 2 * kGemvRows;       // rows of x that meet a row of W while it is in the L1 cache
  static constexpr int64_t kAheadBytes = 1 << 9;         // that GEMV fetches before it reads, for one row of x;
  static constexpr int64_t kFarAheadBytes = 1 << 11;     // for more, where memory would rest while they are multiplied
  static constexpr int64_t kXBytes = 24 << 10;           // of x that a block of K keeps in the L1 cache
  static constexpr int64_t kSumFloats = 8 << 10;         // partial sums that wait for the next block of K

  // [0, total) in `count` almost equal blocks that begin at multiples of `multiple`.
  struct Blocks {
    int64_t total, count, multiple;
    FDPP_INLINE int64_t begin(int64_t index) const {
      if (index == count) return total;
      return total * index / count / multiple * multiple;
    }
  };

  FDPP_INLINE static Blocks row_blocks(const LinearParams& p, int config) {
    const int most = config == kGemv ? 1 : kMaxTileRows;
    return {p.M, (p.M + most - 1) / most, 1};
  }

  FDPP_INLINE static Blocks depth_blocks(const LinearParams& p, int config) {
    const int64_t bytes = p.M * p.K * static_cast<int64_t>(sizeof(Packed));
    if (config == kGemv || bytes <= kXBytes) return {p.K, 1, Product::step};
    const int64_t most = p.K / (4 * Product::step) > 0 ? p.K / (4 * Product::step) : 1;
    const int64_t wanted = (bytes + kXBytes - 1) / kXBytes;
    return {p.K, wanted < most ? wanted : most, Product::step};
  }

  // A tile's operands: `length` elements of K of x (packed) and W, and where its sums come from and go to.
  struct TileTask {
    const Packed* x;
    const T* w;
    int64_t w_stride, length;
    const T* next;     // the tile to fetch meanwhile, null: none
    float* partial;    // vectors of sums [MR][NR]
    bool first, last;  // block of K
  };

  // MR rows of x against NR rows of W, in MR * NR vector accumulators.
  template <int MR, int NR, bool Fetch>
  FDPP_INLINE static void tile(const LinearParams& p, const TileTask& task, int64_t m, int64_t n) {
    typename V::F sums[MR][NR];
    for (int i = 0; i < MR; ++i) {
      for (int j = 0; j < NR; ++j)
        sums[i][j] = task.first ? V::zero() : V::load(task.partial + (i * NR + j) * V::width);
    }
    const T* w = task.w;
    const int64_t stride = task.w_stride;
    const int64_t whole = task.length / Product::step * Product::step;
    for (int64_t k = 0; k < whole; k += Product::step) {
      typename Product::Operand weights[NR];
#pragma GCC unroll 16
      for (int j = 0; j < NR; ++j) {
        weights[j] = Product::load_weight(w + j * stride + k);
        if (Fetch) __builtin_prefetch(task.next + j * stride + k, 0, 3);
      }
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const auto value = V::in_register(Product::load_x(task.x + k * MR + i * Product::step));
#pragma GCC unroll 16
        for (int j = 0; j < NR; ++j) sums[i][j] = Product::mac(sums[i][j], value, weights[j]);
      }
    }
    if (whole < task.length) {
      for (int j = 0; j < NR; ++j) {
        const auto weights = Product::load_weight(w + j * stride + whole, static_cast<int>(task.length - whole));
        for (int i = 0; i < MR; ++i) {
          sums[i][j] = Product::mac(sums[i][j], Product::load_x(task.x + whole * MR + i * Product::step), weights);
        }
      }
    }
    if (!task.last) {
      for (int i = 0; i < MR; ++i) {
        for (int j = 0; j < NR; ++j) V::store(task.partial + (i * NR + j) * V::width, sums[i][j]);
      }
      return;
    }
    for (int i = 0; i < MR; ++i) store<NR>(p, sums[i], m + i, n);
  }

  FDPP_INLINE static const T* weight_at(const LinearParams& p, int64_t n, int64_t k) {
    return static_cast<const T*>(p.weight) + n * p.weight_stride + k;
  }

  // All of x against NR rows of W, over all of K. The rows of W come one after the other, as they lie in memory: short
  // rows side by side are no streams that a processor's prefetcher would follow, and it stops at the end of a page.
  template <int NR>
  FDPP_INLINE static void whole_tiles(const LinearParams& p, int64_t n) {
    for (int64_t m = 0; m < p.M; m += kGemvGroup) {
      const int count = static_cast<int>(p.M - m < kGemvGroup ? p.M - m : kGemvGroup);
      typename V::F sums[kGemvGroup][NR];
      for (int j = 0; j < NR; ++j) {
        const T* w = weight_at(p, n + j, 0);
        int i = 0;
        for (; i + kGemvRows <= count; i += kGemvRows) whole_rows<kGemvRows, NR>(p, m + i, w, sums + i, j);
        for (; i + 2 <= count; i += 2) whole_rows<2, NR>(p, m + i, w, sums + i, j);
        if (i < count) whole_rows<1, NR>(p, m + i, w, sums + i, j);
      }
      for (int i = 0; i < count; ++i) store<NR>(p, sums[i], m + i, n);
    }
  }

  // MR rows of x against a row of W. A row of x has the same sum for every MR.
  template <int MR, int NR>
  FDPP_INLINE static void whole_rows(const LinearParams& p, int64_t m, const T* w, typename V::F (*sums)[NR], int j) {
    constexpr int64_t kStep = kParts * Product::step;
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T)),
                      kAhead = (MR == 1 ? kAheadBytes : kFarAheadBytes) / static_cast<int64_t>(sizeof(T));
    const int64_t stride = padded(p.K);
    const Packed* x = static_cast<const Packed*>(p.packed_x) + m * stride;
    typename V::F parts[MR][kParts];
    for (auto& row : parts) {
      for (auto& part : row) part = V::zero();
    }
    int64_t k = 0;
    for (; k + kStep <= p.K; k += kStep) {
#pragma GCC unroll 16
      for (int64_t line = 0; line < kStep; line += kLine) __builtin_prefetch(w + k + line + kAhead, 0, 3);
#pragma GCC unroll 16
      for (int part = 0; part < kParts; ++part) {
        const int64_t at = k + part * Product::step;
        const auto weights = V::in_register(Product::load_weight(w + at));
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
          parts[i][part] = Product::mac(parts[i][part], Product::load_x(x + i * stride + at), weights);
        }
      }
    }
    for (; k + Product::step <= p.K; k += Product::step) {
      const auto weights = V::in_register(Product::load_weight(w + k));
      for (int i = 0; i < MR; ++i) {
        parts[i][0] = Product::mac(parts[i][0], Product::load_x(x + i * stride + k), weights);
      }
    }
    if (k < p.K) {
      const auto weights = Product::load_weight(w + k, static_cast<int>(p.K - k));
      for (int i = 0; i < MR; ++i) {
        parts[i][1] = Product::mac(parts[i][1], Product::load_x(x + i * stride + k), weights);
      }
    }
    static_assert(kParts == 4);
    for (int i = 0; i < MR; ++i) {
      sums[i][j] = V::add(V::add(parts[i][0], parts[i][1]), V::add(parts[i][2], parts[i][3]));
    }
  }

  // Columns [n, n + NR) of row m of the result.
  template <int NR>
  FDPP_INLINE static void store(const LinearParams& p, const typename V::F (&sums)[NR], int64_t m, int64_t n) {
    const T* bias = static_cast<const T*>(p.bias);
    T* out = static_cast<T*>(p.out) + m * p.N + n;
    if constexpr (NR == V::width) {
      const auto sum = sum_each<V>(sums);
      return V::store(out, bias != nullptr ? V::add(sum, V::load(bias + n)) : sum);
    }
    for (int j = 0; j < NR; ++j) {
      const float sum = V::sum(sums[j]);
      out[j] = from_float<T>(bias != nullptr ? sum + to_float(bias[n + j]) : sum);
    }
  }

  template <int NR, int MR = kMaxTileRows>
  FDPP_INLINE static void tile_of(int rows, const LinearParams& p, const TileTask& task, int64_t m, int64_t n) {
    if constexpr (MR > 0) {
      if (rows == MR)
        return task.next != nullptr ? tile<MR, NR, true>(p, task, m, n) : tile<MR, NR, false>(p, task, m, n);
      tile_of<NR, MR - 1>(rows, p, task, m, n);
    }
  }

  // Columns [begin, end), in panels whose sums can wait in the cache from one block of K to the next.
  template <int Config>
  static void flat_gemm_with(const LinearParams& p, int64_t begin, int64_t end) {
    constexpr int NR = kFlatGemmColumns[Config];
    const int64_t fit = kSumFloats / (p.M * V::width) / NR * NR;
    const int64_t panel = fit > NR ? fit : NR;
    const int64_t whole = begin + (end - begin) / NR * NR;
    for (int64_t n = begin; n < whole; n += panel) {
      panel_of<NR>(p, Config, n, n + panel < whole ? n + panel : whole);
    }
    if (whole < end) panel_of<1>(p, Config, whole, end);
  }

  template <int NR>
  static void panel_of(const LinearParams& p, int config, int64_t begin, int64_t end) {
    alignas(64) float sums[kSumFloats + kMaxFlatRows * NR * V::width];
    const Blocks rows = row_blocks(p, config), depth = depth_blocks(p, config);
    for (int64_t kb = 0; kb < depth.count; ++kb) {
      const int64_t k = depth.begin(kb), length = depth.begin(kb + 1) - k;
      const Packed* x = static_cast<const Packed*>(p.packed_x) + p.M * k;
      float* partial = sums;
      for (int64_t n = begin; n < end; n += NR) {
        TileTask task{nullptr, weight_at(p, n, k),   p.weight_stride, length, nullptr, nullptr,
                      kb == 0, kb + 1 == depth.count};
        const T* next = n + NR < end           ? weight_at(p, n + NR, k)
                        : kb + 1 < depth.count ? weight_at(p, begin, k + length)
                        : end + NR <= p.N      ? weight_at(p, end, 0)
                                               : nullptr;
        for (int64_t mb = 0; mb < rows.count; ++mb) {
          const int64_t m = rows.begin(mb), count = rows.begin(mb + 1) - m;
          task.x = x + m * padded(length);
          task.next = mb == 0 ? next : nullptr;
          task.partial = partial;
          tile_of<NR>(static_cast<int>(count), p, task, m, n);
          partial += count * NR * V::width;
        }
      }
    }
  }
};

}  // namespace fdpp::cpu
