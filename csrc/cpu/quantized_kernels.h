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

// Unrolls loops over the columns of a group, so that shifts are constants. Where a sanitizer checks every load, that
// would take the compiler minutes.
#if defined(__SANITIZE_ADDRESS__)
#define FDPP_UNROLL_COLUMNS
#else
#define FDPP_UNROLL_COLUMNS _Pragma("GCC unroll 16")
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
        FDPP_UNROLL_COLUMNS
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
struct QuantizedKernels
    : GroupProducts<V, info_of(kFormat).halves(), info_of(kFormat).has_min || info_of(kFormat).has_zero> {
  using Base = GroupProducts<V, info_of(kFormat).halves(), info_of(kFormat).has_min || info_of(kFormat).has_zero>;
  using Base::kPairs, Base::kParts;
  using typename Base::Chunk;
  using typename Base::F;
  using typename Base::I;
  static constexpr FormatInfo kInfo = info_of(kFormat);
  static constexpr int kHalves = kInfo.halves();
  static constexpr int kEighths = kGroup / 8 / kHalves;  // of a half: eight columns each
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

  using Scale = std::conditional_t<kInfo.scale_dtype == DType::f32, float,
                                   std::conditional_t<kInfo.scale_dtype == DType::f16, f16, bf16>>;

  // The scale and the minimum of half a group, or of a whole one, for a part's rows.
  FDPP_INLINE static void factors(const uint8_t* run, const uint8_t* group, int part, int half, F& scale, F& min) {
    const Scale* of_run = reinterpret_cast<const Scale*>(run) + part * V::width;
    const int8_t* own = reinterpret_cast<const int8_t*>(group) + part * V::width;
    scale = V::load(of_run);
    min = V::zero();
    if constexpr (kInfo.has_min) min = V::load(of_run + kPanelRows);
    if constexpr (kInfo.has_zero) {
      const int8_t* zeros = reinterpret_cast<const int8_t*>(run) + kPanelRows * kInfo.scale_bytes() + part * V::width;
      min = V::mul(scale, V::sub(V::zero(), V::load(zeros)));
    }
    if constexpr (kInfo.sub_scales > 0) scale = V::mul(scale, V::load(own + half * kPanelRows));
    if constexpr (kInfo.sub_scales > 0 && kInfo.has_min) {
      min = V::mul(min, V::load(own + (kInfo.sub_scales + half) * kPanelRows));
    }
  }

  // The words that hold the codes of eight columns of K: those of a plane are shifted so that the code of a pair lies
  // where it belongs in the sum of the planes after a shift by `pair` times the plane's bits.
  struct Words {
    I eight[2], four, two, one;
  };
  static constexpr int kTwoShift = kInfo.bits & 4, kOneShift = kTwoShift + (kInfo.bits & 2);

  FDPP_INLINE static Words words_of(const uint8_t* planes, int part, int eighth) {
    constexpr int kWord = kPanelRows * 4;
    planes += part * V::width * 4;
    Words words;
    if constexpr (kInfo.bits == 8) {
      for (int i = 0; i < 2; ++i) words.eight[i] = V::load_int(planes + (2 * eighth + i) * kWord);
    }
    if constexpr ((kInfo.bits & 4) != 0) words.four = V::load_int(planes + eighth * kWord);
    if constexpr ((kInfo.bits & 2) != 0) {
      const I both = V::load_int(planes + (kInfo.bits & 4) * kWord + eighth / 2 * kWord);
      words.two = eighth % 2 == 0 ? V::shift_left(both, kTwoShift) : V::shift_right(both, 8 - kTwoShift);
    }
    if constexpr ((kInfo.bits & 1) != 0) {
      const I all = V::load_int(planes + (kInfo.bits & 6) * kWord);
      words.one = eighth == 0 ? V::shift_left(all, kOneShift) : V::shift_right(all, 4 * eighth - kOneShift);
    }
    return words;
  }

  // The codes of one of the four pairs of columns.
  FDPP_INLINE static I codes(const Words& words, int pair, typename V::Table table) {
    if constexpr (kInfo.bits == 8) {
      return pair % 2 == 0 ? V::low_bytes(words.eight[pair / 2]) : V::high_bytes(words.eight[pair / 2]);
    } else if constexpr (kInfo.codebook != nullptr) {
      return V::lookup(table, V::shift_right(words.four, 4 * pair));
    } else {
      I code = V::broadcast_int(0);
      if constexpr ((kInfo.bits & 4) != 0) code = field<15, 0>(V::shift_right(words.four, 4 * pair));
      if constexpr ((kInfo.bits & 2) != 0) {
        const I high = field<3, kTwoShift>(V::shift_right(words.two, 2 * pair));
        code = kTwoShift > 0 ? V::bit_or(code, high) : high;
      }
      if constexpr ((kInfo.bits & 1) != 0) {
        code = V::bit_or(code, field<1, kOneShift>(V::shift_right(words.one, pair)));
      }
      return code;
    }
  }

  template <int kMask, int kShift>
  FDPP_INLINE static I field(I words) {
    return V::bit_and(words, V::broadcast_int(kMask << kShift | kMask << (kShift + 16)));
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
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
      I products[MR][kParts];
      for (auto& row : products) {
        for (I& product : row) product = V::broadcast_int(0);
      }
      for (int eighth = half * kEighths; eighth < (half + 1) * kEighths; ++eighth) {
        Words words[kParts];
        for (int part = 0; part < kParts; ++part) {
          words[part] = words_of(group + kInfo.sub_bytes(), part, eighth);
        }
        FDPP_UNROLL_COLUMNS
        for (int pair = 0; pair < 4; ++pair) {
          I values[MR];
          for (int row = 0; row < MR; ++row) values[row] = Base::pair_of(*x[row], 4 * eighth + pair);
          for (int part = 0; part < kParts; ++part) {
            const I code = codes(words[part], pair, table);
            for (int row = 0; row < MR; ++row) products[row][part] = V::dot(products[row][part], code, values[row]);
          }
        }
      }
      for (int part = 0; part < kParts; ++part) {
        F scale, min;
        factors(run, group, part, half, scale, min);
        for (int row = 0; row < MR; ++row) {
          I product = products[row][part];
          if constexpr (kInfo.zero != 0) {
            const int32_t sum = x[row]->sums[kHalves == 2 ? half : 2];
            product = V::sub_int(product, V::shift_left(V::broadcast_int(sum), kZeroShift));
          }
          Base::add_group(sums[row][part], product, scale, min, *x[row], half);
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
          for (int eighth = 0; eighth < kGroup / 8; ++eighth) {
            const Words words = words_of(group + kInfo.sub_bytes(), part, eighth);
            FDPP_UNROLL_COLUMNS
            for (int pair = 0; pair < 4; ++pair) {
              I code = codes(words, pair, table);
              if constexpr (kInfo.zero != 0) code = V::sub_words(code, zeros);
              V::store_int(chunk.words[number][4 * eighth + pair] + part * 2 * V::width, code);
            }
          }
          for (int half = 0; half < kHalves; ++half) {
            F scale, min;
            factors(run, group, part, half, scale, min);
            V::store(chunk.scale[number][half] + part * V::width, scale);
            V::store(chunk.min[number][half] + part * V::width, min);
          }
        }
      }
    }
    return run;
  }
};

}  // namespace fdpp::cpu
