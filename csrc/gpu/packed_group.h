// A lane's part of one group of a packed weight (common/weight_format.h): 32 elements of K of the 16 rows of a panel,
// from memory to the operand of the matrix unit. The codes become the integers that they stand for, which float16 and
// bfloat16 hold exactly; their scale belongs to the sums.
#pragma once

#include <type_traits>

#include "common/weight_format.h"
#include "gpu/chunks.h"
#include "gpu/linear_tiles.h"

namespace fdpp {

template <typename Arch, typename T, WeightFormat kFormat>
class PackedGroup {
 public:
  using Fragment = typename Arch::template Fragments<T>;
  static constexpr FormatInfo kInfo = info_of(kFormat);
  static constexpr int kHalves = kInfo.halves();                      // of the group, each with a scale of its own
  static constexpr int kPairs = 16 / Fragment::kCodeLanes / kHalves;  // of K that a lane has of a half
  static constexpr int kSumRows = Fragment::kOutputs / Fragment::kSumsOfRow;  // rows that a lane has sums of

 private:
  // Words of a plane of kBits that hold a lane's pairs of a half; a word holds 16 / kBits pairs.
  template <int kBits>
  static constexpr int kPlaneWords = (kInfo.bits & kBits) == 0 ? 0
                                     : kPairs * kBits < 16     ? 1
                                                               : kPairs * kBits / 16;
  static constexpr int kHalfWords = kPlaneWords<8> + kPlaneWords<4> + kPlaneWords<2> + kPlaneWords<1>;
  // Of the wider planes, which come before: the lane's words, and the bits of a code.
  template <int kBits>
  static constexpr int kWordsBefore =
      (kBits < 8 ? kPlaneWords<8> : 0) + (kBits < 4 ? kPlaneWords<4> : 0) + (kBits < 2 ? kPlaneWords<2> : 0);
  template <int kBits>
  static constexpr int kBitsBefore = kInfo.bits & ~(2 * kBits - 1);
  static constexpr int kScaleBytes = kInfo.scale_bytes(), kSubBytes = static_cast<int>(kInfo.sub_bytes());

 public:
  using Codes = uint32_t[kHalves][Fragment::kCodeRows][kPairs];
  using Factors = float[kHalves][kSumRows];
  // Of registers: what a lane keeps on its way.
  static constexpr int kHeaderWords =
      (kInfo.has_min ? 2 : 1) * (kSumRows * kScaleBytes + 3) / 4 + (kInfo.has_zero ? 1 : 0);
  static constexpr int kWords =
      kHalves * kHalfWords * Fragment::kCodeRows + kInfo.sub_scales * (kInfo.has_min ? 2 : 1) * ((kSumRows + 3) / 4);

  // Of a GEMM with these.
  static constexpr FlatTile tile(int padded_m) {
    return kInfo.groups == 1 ? packed_tile(padded_m, kWords + kHeaderWords, 0)
                             : packed_tile(padded_m, kWords, kHeaderWords);
  }

  // What belongs to a run of groups: kInfo.groups of them.
  struct Header {
    uint32_t scales[kSumRows], mins[kSumRows], zeros;
  };

  FDPP_OUTLINE static void load_header(Header& header, const uint8_t* run, int lane) {
    load_bytes<kSumRows * kScaleBytes>(header.scales, run + kScaleBytes * Fragment::sum_row(lane));
    if constexpr (kInfo.has_min) {
      load_bytes<kSumRows * kScaleBytes>(header.mins, run + kScaleBytes * (kPanelRows + Fragment::sum_row(lane)));
    }
    if constexpr (kInfo.has_zero) {
      uint32_t zeros[1];
      load_bytes<Fragment::kCodeRows>(zeros, run + kScaleBytes * kPanelRows + Fragment::code_row(lane));
      header.zeros = zeros[0];
    }
  }

  FDPP_OUTLINE void load(const uint8_t* group, int lane) {
    FDPP_UNROLL
    for (int i = 0; i < kInfo.sub_scales; ++i) {
      load_bytes<kSumRows>(sub_scales_[i], group + i * kPanelRows + Fragment::sum_row(lane));
      if constexpr (kInfo.has_min) {
        load_bytes<kSumRows>(sub_mins_[i], group + (kInfo.sub_scales + i) * kPanelRows + Fragment::sum_row(lane));
      }
    }
    const uint8_t* const codes = group + kSubBytes + 4 * Fragment::code_row(lane);
    FDPP_UNROLL
    for (int half = 0; half < kHalves; ++half) {
      load_plane<8>(codes, half, lane);
      load_plane<4>(codes, half, lane);
      load_plane<2>(codes, half, lane);
      load_plane<1>(codes, half, lane);
    }
  }

  // The lane's first pair of a half, of the 16 of the group.
  FDPP_INLINE static int first_pair(int half, int lane) {
    return half * (16 / kHalves) + Fragment::code_part(lane) * kPairs;
  }

  FDPP_OUTLINE void unpack(const Header& header, int lane, Codes& codes) const {
    FDPP_UNROLL
    for (int half = 0; half < kHalves; ++half) {
      FDPP_UNROLL
      for (int row = 0; row < Fragment::kCodeRows; ++row) {
        if constexpr (kInfo.codebook != nullptr) {
          FDPP_UNROLL
          for (int i = 0; i < kPairs; i += 4) {
            constexpr uint32_t kTable[4] = {table(0), table(1), table(2), table(3)};
            uint32_t values[4];
            Arch::look_up(kTable, words_[half][i / 4][row], values);
            FDPP_UNROLL
            for (int j = 0; j < 4; ++j) codes[half][row][i + j] = signed_byte(values[j] & 0x00ff00ff);
          }
        } else {
          FDPP_UNROLL
          for (int i = 0; i < kPairs; ++i) {
            if constexpr (kInfo.bits == 8) {
              codes[half][row][i] = signed_byte(plane<8>(half, row, i, lane) ^ 0x00800080);
            } else if constexpr (kInfo.bits == kWidest) {
              codes[half][row][i] =
                  less_zero(Arch::template place<kMask<kWidest>, kBase>(shifted<kWidest>(half, row, i, lane)),
                            zero_of(header, row));
            } else {
              const uint32_t rest = plane<2>(half, row, i, lane) | plane<1>(half, row, i, lane);
              codes[half][row][i] =
                  less_zero(Arch::template place<kMask<kWidest>, kBase>(shifted<kWidest>(half, row, i, lane)) | rest,
                            zero_of(header, row));
            }
          }
        }
      }
    }
  }

  // The factors of the lane's sums, and of the sums of x alone.
  FDPP_OUTLINE void factors(const Header& header, Factors& scales, Factors& mins) const {
    FDPP_UNROLL
    for (int row = 0; row < kSumRows; ++row) {
      const float scale = float_at(header.scales, row);
      FDPP_UNROLL
      for (int half = 0; half < kHalves; ++half) {
        const int sub = half * (kInfo.sub_scales - 1);
        scales[half][row] = kInfo.sub_scales > 0 ? scale * byte_at(sub_scales_[sub], row) : scale;
        if constexpr (kInfo.has_min) {
          const float min = float_at(header.mins, row);
          mins[half][row] = kInfo.sub_scales > 0 ? min * byte_at(sub_mins_[sub], row) : min;
        }
      }
    }
  }

 private:
  template <int kBits>
  FDPP_INLINE void load_plane(const uint8_t* codes, int half, int lane) {
    if constexpr (kPlaneWords<kBits> > 0) {
      const uint8_t* const from = codes + (kBitsBefore<kBits> + first_pair(half, lane) * kBits / 16) * (4 * kPanelRows);
      FDPP_UNROLL
      for (int i = 0; i < kPlaneWords<kBits>; ++i) {
        uint32_t (&words)[Fragment::kCodeRows] = words_[half][kWordsBefore<kBits> + i];
        if constexpr (Fragment::kCodeRows == 2) {
          const auto two = Arch::template stream_word<Bytes8>(from + i * (4 * kPanelRows));
          words[0] = two.words[0], words[1] = two.words[1];
        } else {
          words[0] = Arch::template stream_word<uint32_t>(from + i * (4 * kPanelRows));
        }
      }
    }
  }

  static constexpr int kWidest = kInfo.bits >= 4 ? 4 : 2;  // of the planes of codes below 128
  template <int kBits>
  static constexpr uint32_t kMask = ((1u << kBits) - 1) * 0x00010001;

  // Pair i of a lane, as far as a plane has it, in the lowest bits of halves.
  template <int kBits>
  FDPP_INLINE uint32_t shifted(int half, int row, int i, int lane) const {
    uint32_t word = words_[half][kWordsBefore<kBits> + i * kBits / 16][row];
    if constexpr (kPairs * kBits < 16) word >>= first_pair(half, lane) * kBits % 16;
    return word >> i * kBits % 16;
  }

  // The same at the place of its bits in the code; 0 where there is no such plane, or where it is the widest.
  template <int kBits>
  FDPP_INLINE uint32_t plane(int half, int row, int i, int lane) const {
    if constexpr (kPlaneWords<kBits> == 0 || kBits == kWidest) {
      return 0;
    } else {
      return (shifted<kBits>(half, row, i, lane) & kMask<kBits>) << kBitsBefore<kBits>;
    }
  }

  FDPP_INLINE static int zero_of(const Header& header, int row) {
    return kInfo.has_zero ? static_cast<int>(header.zeros >> 8 * row & 255) : kInfo.zero;
  }

  // Codes below 128 are the last bits of a number in [1024, 2048) of float16, of one in [128, 256) of bfloat16.
  static constexpr bool kHalf = __is_same(T, f16);
  static constexpr uint32_t kBase = kHalf ? 0x64006400 : 0x43004300;
  FDPP_INLINE static uint32_t less_zero(uint32_t pair, int zero) {
    return Arch::template subtract<T>(pair, kBase + static_cast<uint32_t>(zero) * 0x00010001);
  }

  // Bytes less 128. bfloat16 has 8 bits: a difference of floats, whose upper half it is.
  FDPP_INLINE static uint32_t signed_byte(uint32_t pair) {
    if constexpr (kHalf) return Arch::template subtract<T>(pair | 0x64006400, 0x64806480);
    constexpr float kOffset = 0x1p23f + 128.0f;
    const float low = bits_to_float(0x4b000000 | (pair & 0xffff)) - kOffset,
                high = bits_to_float(0x4b000000 | pair >> 16) - kOffset;
    return float_to_bits(low) >> 16 | (float_to_bits(high) & 0xffff0000);
  }

  // Entries 4 i to 4 i + 3 of the codebook, plus 128.
  FDPP_DEVICE static constexpr uint32_t table(int i) {
    uint32_t word = 0;
    for (int j = 0; j < 4; ++j) word |= static_cast<uint32_t>(kInfo.codebook[4 * i + j] + 128) << 8 * j;
    return word;
  }

  FDPP_INLINE static float float_at(const uint32_t (&words)[kSumRows], int row) {
    if constexpr (kInfo.scale_dtype == DType::f32) return bits_to_float(words[row]);
    using Scale = std::conditional_t<kInfo.scale_dtype == DType::f16, f16, bf16>;
    float low, high;
    Arch::template unpack<Scale>(words[row / 2], low, high);
    return row % 2 == 0 ? low : high;
  }
  // By way of 2^23: conversions are slow.
  FDPP_INLINE static float byte_at(const uint32_t (&words)[kSumRows], int row) {
    const uint32_t byte = words[row / 4] >> row % 4 * 8 & 255;
    return bits_to_float(0x4b000000 | (byte ^ 0x80)) - (0x1p23f + 128.0f);
  }

  template <int kBytes, int kWords>
  FDPP_INLINE static void load_bytes(uint32_t (&words)[kWords], const uint8_t* from) {
    static_assert(kBytes <= 4 * kWords);
    if constexpr (kBytes <= 4) {
      using Word = std::conditional_t<kBytes == 4, uint32_t, std::conditional_t<kBytes == 2, uint16_t, uint8_t>>;
      words[0] = Arch::template load_word<Word>(from);
    } else if constexpr (kBytes == 8) {
      const auto two = Arch::template load_word<Bytes8>(from);
      words[0] = two.words[0], words[1] = two.words[1];
    } else {
      FDPP_UNROLL
      for (int i = 0; i < kBytes / 16; ++i) {
        const auto four = Arch::template load_word<Bytes16>(from + 16 * i);
        FDPP_UNROLL
        for (int j = 0; j < 4; ++j) words[4 * i + j] = four.words[j];
      }
    }
  }

  uint32_t words_[kHalves][kHalfWords][Fragment::kCodeRows];
  uint32_t sub_scales_[2][kSumRows], sub_mins_[2][kSumRows];
};

}  // namespace fdpp
