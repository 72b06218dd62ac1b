// y = x W^T + b for a packed weight of few bits (common/weight_format.h), exact to its values.
//
// Codes are small integers. Their products with x, rounded to 16 bits per group of 32 elements of K (an error of 2^-16
// of the group's largest), are summed as integers, and the sum of a group takes the scales: exact where the values of a
// weight, rounded to 16 bits, would not be, and cheaper, as a panel's 16 rows lie in the lanes of a vector and no sum
// goes across lanes. A row of x gives the same bits for every M: whichever function computes it adds the same groups in
// the same order.
//
// The GEMV unpacks codes into registers, for one or two rows of x. The flat GEMM unpacks 256 columns of a panel into
// the L1 cache, for any number of rows.
#pragma once

#include <type_traits>

#include "common/weight_format.h"
#include "cpu/kernels.h"
#include "cpu/math.h"
#include "cpu/quantized_input.h"

// Loops over the columns of a group are unrolled, so that shifts are constants.
#ifndef FDPP_UNROLL_GROUP
#define FDPP_UNROLL_GROUP _Pragma("GCC unroll 16")
#endif

namespace fdpp::cpu {

template <typename V>
struct QuantizedBase {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kParts = kPanelRows / V::width;  // vectors of a panel's rows
  static constexpr int kPairs = kGroup / 2;             // of a group

  // A pair of values of x in all lanes.
  FDPP_INLINE static I pair_of(const PackedGroup& x, int pair) {
    int32_t both;
    __builtin_memcpy(&both, x.values + 2 * pair, sizeof both);
    return V::broadcast_int(both);
  }

  // Rows [n, n + 16) of the weight are columns of the result, of which the last ones may not exist.
  template <typename T>
  FDPP_INLINE static void store(const QuantizedParams& q, const F* sums, int64_t m, int64_t n) {
    const LinearParams& p = q.linear;
    const T* bias = static_cast<const T*>(p.bias);
    T* out = static_cast<T*>(p.out) + m * q.out_stride;
    for (int part = 0; part < kParts && n + part * V::width < p.N; ++part) {
      const int64_t column = n + part * V::width;
      const int64_t left = p.N - column;
      F sum = sums[part];
      if (left >= V::width) {
        if (bias != nullptr) sum = V::add(sum, V::load(bias + column));
        V::store(out + column, sum);
      } else {
        if (bias != nullptr) sum = V::add(sum, V::load(bias + column, static_cast<int>(left)));
        V::store(out + column, sum, static_cast<int>(left));
      }
    }
  }

  static void store(const QuantizedParams& q, const F* sums, int64_t m, int64_t n) {
    switch (q.linear.dtype) {
      case DType::f32: return store<float>(q, sums, m, n);
      case DType::bf16: return store<bf16>(q, sums, m, n);
      case DType::f16: return store<f16>(q, sums, m, n);
    }
  }
};

// What the formats with as many halves, and with a minimum or without, have in common.
template <typename V, int kHalves, bool kHasMin>
struct GroupProducts : QuantizedBase<V> {
  using Base = QuantizedBase<V>;
  using Base::kPairs, Base::kParts;
  using typename Base::F;
  using typename Base::I;

  // 256 columns of a panel, unpacked.
  struct Chunk {
    alignas(64) int16_t words[kChunkGroups][kPairs][2 * kPanelRows];  // code - zero, or what the code stands for
    float scale[kChunkGroups][kHalves][kPanelRows], min[kChunkGroups][kHalves][kPanelRows];
  };

  // What a group, or a half of one, adds to a sum.
  FDPP_INLINE static void add_group(F& sum, I product, F scale, F min, const PackedGroup& x, int half) {
    const F x_scale = V::broadcast(x.scale);
    sum = V::fma(V::mul(scale, x_scale), V::from_int(product), sum);
    if constexpr (kHasMin) {
      const float total = x.scale * static_cast<float>(x.sums[kHalves == 2 ? half : 2]);
      sum = V::fma(min, V::broadcast(total), sum);
    }
  }

  static constexpr int kMaxRows = 8 / kParts;  // of x at once: sums, words and a pair have registers

  // Adds the chunk's products with as many of the rows as fit into registers; returns how many.
  // Not inlined: every format would have a copy.
  __attribute__((noinline)) static int multiply(const Chunk& chunk, int count, const PackedGroup* x, int rows,
                                                float* sums) {
    return multiply_rows<kMaxRows>(chunk, count, x, rows, sums);
  }

 private:
  template <int MR>
  FDPP_INLINE static int multiply_rows(const Chunk& chunk, int count, const PackedGroup* x, int rows, float* sums) {
    if constexpr (MR > 1) {
      if (rows < MR) return multiply_rows<MR - 1>(chunk, count, x, rows, sums);
    }
    multiply_with<MR>(chunk, count, x, sums);
    return MR;
  }

  template <int MR>
  static void multiply_with(const Chunk& chunk, int count, const PackedGroup* x, float* sums) {
    F totals[MR][kParts];
    for (int row = 0; row < MR; ++row) {
      for (int part = 0; part < kParts; ++part) totals[row][part] = V::load(sums + row * kPanelRows + part * V::width);
    }
    for (int group = 0; group < count; ++group) {
      for (int half = 0; half < kHalves; ++half) {
        I products[MR][kParts];
        for (auto& row : products) {
          for (I& product : row) product = V::broadcast_int(0);
        }
        FDPP_UNROLL_GROUP
        for (int i = 0; i < kPairs / kHalves; ++i) {
          const int pair = half * (kPairs / kHalves) + i;
          I words[kParts];
          for (int part = 0; part < kParts; ++part) {
            words[part] = V::in_register(V::load_int(chunk.words[group][pair] + part * 2 * V::width));
          }
#pragma GCC unroll 8
          for (int row = 0; row < MR; ++row) {
            const I values = Base::pair_of(x[row * kChunkGroups + group], pair);
            for (int part = 0; part < kParts; ++part) {
              products[row][part] = V::dot(products[row][part], words[part], values);
            }
          }
        }
        for (int part = 0; part < kParts; ++part) {
          const F scale = V::load(chunk.scale[group][half] + part * V::width);
          const F min = V::load(chunk.min[group][half] + part * V::width);
          for (int row = 0; row < MR; ++row) {
            add_group(totals[row][part], products[row][part], scale, min, x[row * kChunkGroups + group], half);
          }
        }
      }
    }
    for (int row = 0; row < MR; ++row) {
      for (int part = 0; part < kParts; ++part) V::store(sums + row * kPanelRows + part * V::width, totals[row][part]);
    }
  }
};

template <typename V, WeightFormat kFormat>
struct QuantizedKernels : GroupProducts<V, info_of(kFormat).halves(), info_of(kFormat).has_min> {
  using Base = GroupProducts<V, info_of(kFormat).halves(), info_of(kFormat).has_min>;
  using Base::kPairs, Base::kParts;
  using typename Base::Chunk;
  using typename Base::F;
  using typename Base::I;
  static constexpr FormatInfo kInfo = info_of(kFormat);
  static constexpr int kHalves = kInfo.halves();
  static constexpr int kZeroShift = kInfo.zero > 1 ? __builtin_ctz(kInfo.zero) : 0;

  // Panels [begin, end).
  static void gemv(const QuantizedParams& q, int64_t begin, int64_t end) {
    for (int64_t m = 0; m < q.linear.M; m += 2) {
      m + 1 < q.linear.M ? gemv_rows<2>(q, m, begin, end) : gemv_rows<1>(q, m, begin, end);
    }
  }

  static void flat_gemm(const QuantizedParams& q, int64_t begin, int64_t end) {
    const LinearParams& p = q.linear;
    const int64_t panel_bytes = kInfo.panel_bytes(p.K), groups = p.K / kGroup;
    Chunk chunk;
    alignas(64) float sums[kMaxFlatRows * kPanelRows];
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t first = 0; first < p.M; first += kMaxFlatRows) {
        const int64_t rows = p.M - first < kMaxFlatRows ? p.M - first : kMaxFlatRows;
        for (int64_t i = 0; i < rows * kPanelRows; ++i) sums[i] = 0.0f;
        const uint8_t* run = static_cast<const uint8_t*>(p.weight) + panel * panel_bytes;
        for (int64_t group = 0; group < groups; group += kChunkGroups) {
          const int count = static_cast<int>(groups - group < kChunkGroups ? groups - group : kChunkGroups);
          run = unpack(run, count, chunk);
          for (int64_t m = 0; m < rows;) {
            const PackedGroup* x = packed_groups(p.packed_x, p.M, group / kChunkGroups, first + m);
            m += Base::multiply(chunk, count, x, static_cast<int>(rows - m), sums + m * kPanelRows);
          }
        }
        for (int64_t m = 0; m < rows; ++m) {
          F row[kParts];
          for (int part = 0; part < kParts; ++part) row[part] = V::load(sums + m * kPanelRows + part * V::width);
          Base::store(q, row, first + m, panel * kPanelRows);
        }
      }
    }
  }

 private:
  static constexpr int64_t kAheadBytes = 1 << 10;

  using Halves = std::conditional_t<kInfo.scale_dtype == DType::f16, f16, bf16>;

  // The scales and minimums of a group of a part's rows.
  FDPP_INLINE static void factors(const uint8_t* run, const uint8_t* group, int part, F (&scale)[kHalves],
                                  F (&min)[kHalves]) {
    const Halves* of_run = reinterpret_cast<const Halves*>(run) + part * V::width;
    const F scales = V::load(of_run), mins = kInfo.has_min ? V::load(of_run + kPanelRows) : V::zero();
    const int8_t* own = reinterpret_cast<const int8_t*>(group) + part * V::width;
    for (int half = 0; half < kHalves; ++half) {
      scale[half] = kInfo.sub_scales > 0 ? V::mul(scales, V::load(own + half * kPanelRows)) : scales;
      min[half] = mins;
      if constexpr (kInfo.has_min && kInfo.sub_scales > 0) {
        min[half] = V::mul(mins, V::load(own + (kInfo.sub_scales + half) * kPanelRows));
      }
    }
  }

  // The codes of a pair of columns of K, as words.
  FDPP_INLINE static I codes(const uint8_t* planes, int part, int pair, typename V::Table table) {
    const uint8_t* own = planes + part * V::width * 4;
    if constexpr (kInfo.bits == 8) {
      const I words = V::load_int(own + pair / 2 * kPanelRows * 4);
      return pair % 2 == 0 ? V::low_bytes(words) : V::high_bytes(words);
    } else {
      I code = V::broadcast_int(0);
      int shift = 0;
#pragma GCC unroll 4
      for (int bits = 4; bits > 0; bits /= 2) {
        if ((kInfo.bits & bits) == 0) continue;
        const int each = 16 / bits, s = bits * (pair % each);
        const I words = V::load_int(own + pair / each * kPanelRows * 4);
        if constexpr (kInfo.codebook != nullptr) {
          // The table does not look beyond the code's four bits; AVX-512 looks at a fifth and is the same there.
          return V::lookup(table, V::shift_right(words, s));
        }
        const I mask = V::broadcast_int(((1 << bits) - 1) << shift | ((1 << bits) - 1) << (shift + 16));
        const I moved = s > shift   ? V::shift_right(words, s - shift)
                        : s < shift ? V::shift_left(words, shift - s)
                                    : words;
        const I own_bits = V::bit_and(moved, mask);
        code = shift == 0 ? own_bits : V::bit_or(code, own_bits);
        shift += bits;
        own += bits * kPanelRows * 4;
      }
      return code;
    }
  }

  template <int MR>
  static void gemv_rows(const QuantizedParams& q, int64_t m, int64_t begin, int64_t end) {
    const LinearParams& p = q.linear;
    const int64_t panel_bytes = kInfo.panel_bytes(p.K), runs = p.K / (kGroup * kInfo.groups);
    const auto table = V::table_of(kInfo.codebook != nullptr ? kInfo.codebook : kIq4Values);
    for (int64_t panel = begin; panel < end; ++panel) {
      const uint8_t* run = static_cast<const uint8_t*>(p.weight) + panel * panel_bytes;
      F sums[MR][kParts];
      for (auto& row : sums) {
        for (F& sum : row) sum = V::zero();
      }
      for (int64_t i = 0; i < runs; ++i, run += kInfo.run_bytes()) {
        for (int group = 0; group < kInfo.groups; ++group) {
          const uint8_t* at = run + kInfo.header_bytes() + group * kInfo.group_bytes();
          for (int64_t line = 0; line < kInfo.group_bytes(); line += 64)
            __builtin_prefetch(at + line + kAheadBytes, 0, 3);
          const int64_t number = i * kInfo.groups + group;
          const PackedGroup* x[MR];
          for (int row = 0; row < MR; ++row) {
            x[row] = packed_groups(p.packed_x, p.M, number / kChunkGroups, m + row) + number % kChunkGroups;
          }
          gemv_group<MR>(run, at, x, table, sums);
        }
      }
      for (int row = 0; row < MR; ++row) Base::store(q, sums[row], m + row, panel * kPanelRows);
    }
  }

  template <int MR>
  FDPP_INLINE static void gemv_group(const uint8_t* run, const uint8_t* group, const PackedGroup* const (&x)[MR],
                                     typename V::Table table, F (&sums)[MR][kParts]) {
    I products[MR][kParts][kHalves];
    for (auto& row : products) {
      for (auto& part : row) {
        for (I& half : part) half = V::broadcast_int(0);
      }
    }
    const uint8_t* planes = group + kInfo.sub_bytes();
    FDPP_UNROLL_GROUP
    for (int pair = 0; pair < kPairs; ++pair) {
      I values[MR];
#pragma GCC unroll 4
      for (int row = 0; row < MR; ++row) values[row] = Base::pair_of(*x[row], pair);
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        const I words = codes(planes, part, pair, table);
#pragma GCC unroll 4
        for (int row = 0; row < MR; ++row) {
          I& sum = products[row][part][pair * kHalves / kPairs];
          sum = V::dot(sum, words, values[row]);
        }
      }
    }
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      F scale[kHalves], min[kHalves];
      factors(run, group, part, scale, min);
#pragma GCC unroll 4
      for (int row = 0; row < MR; ++row) {
        for (int half = 0; half < kHalves; ++half) {
          I product = products[row][part][half];
          if constexpr (kInfo.zero != 0) {
            const int32_t sum = x[row]->sums[kHalves == 2 ? half : 2];
            product = V::sub_int(product, V::shift_left(V::broadcast_int(sum), kZeroShift));
          }
          Base::add_group(sums[row][part], product, scale[half], min[half], *x[row], half);
        }
      }
    }
  }

  // `count` groups into the chunk; returns where the next ones lie.
  static const uint8_t* unpack(const uint8_t* run, int count, Chunk& chunk) {
    const auto table = V::table_of(kInfo.codebook != nullptr ? kInfo.codebook : kIq4Values);
    const I zeros = V::broadcast_int(kInfo.zero | kInfo.zero << 16);
    for (int first = 0; first < count; first += kInfo.groups, run += kInfo.run_bytes()) {
      for (int i = 0; i < kInfo.groups; ++i) {
        const uint8_t* group = run + kInfo.header_bytes() + i * kInfo.group_bytes();
        for (int64_t line = 0; line < kInfo.group_bytes(); line += 64) {
          __builtin_prefetch(group + line + kChunkGroups * kInfo.group_bytes(), 0, 3);
        }
        const int number = first + i;
        for (int part = 0; part < kParts; ++part) {
          FDPP_UNROLL_GROUP
          for (int pair = 0; pair < kPairs; ++pair) {
            I words = codes(group + kInfo.sub_bytes(), part, pair, table);
            if constexpr (kInfo.zero != 0) words = V::sub_words(words, zeros);
            V::store_int(chunk.words[number][pair] + part * 2 * V::width, words);
          }
          F scale[kHalves], min[kHalves];
          factors(run, group, part, scale, min);
          for (int half = 0; half < kHalves; ++half) {
            V::store(chunk.scale[number][half] + part * V::width, scale[half]);
            V::store(chunk.min[number][half] + part * V::width, min[half]);
          }
        }
      }
    }
    return run;
  }
};

}  // namespace fdpp::cpu
