// Weights of few bits: what a format stores, and where it lies in a packed weight.
//
// A value is scale * (code - zero) + minimum, or scale * codebook[code], as in the file that it comes from: packing
// moves bits and rounds nothing. A packed weight is a row of panels, each of 16 rows of the weight. A panel holds, for
// one run of K after another:
//
//   scales [16], minimums [16] of their dtype or zeros [16] int8 (where there are any), then for each group of 32
//   elements of K
//     the group's own factors of the scale, and of the minimum, [sub_scales][16] int8 (where there are any)
//     its codes in planes, the one of 4 bits first, then that of 2, then that of 1; codes of 8 bits in one
//
// A plane of b bits is [b][16 rows] words of 32 bits, of which each half holds 16 / b codes. The codes at bit b s of
// the halves of word v of a row are those of k = (32 / b) v + 2 s and of the next k: shifted and masked, a vector of
// words is 16 rows of pairs that processors multiply with pairs of x.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/dtype.h"

namespace fdpp {

enum class WeightFormat : int {
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
  iq4_nl,
  iq4_xs,
  mxfp4,
  int4_32,
  int4_128,
  int8_128,
};
constexpr int kNumWeightFormats = 16;

constexpr int kPanelRows = 16;
constexpr int kGroup = 32;  // elements of K

constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kE2m1Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};  // doubled

struct FormatInfo {
  const char* name;
  int file_bytes;          // of a block of groups * kGroup elements as it is stored
  int bits;                // of a code: the planes are the powers of two that it is the sum of
  int zero;                // the code of the value 0: 0 or a power of two
  const int8_t* codebook;  // [16], what codes stand for; null: for themselves
  DType scale_dtype;
  bool has_min;    // minimums are stored,
  bool has_zero;   // or the codes of 0, row by row
  int groups;      // that share a scale
  int sub_scales;  // of a group: 0, 1, or 2 for its halves

  constexpr int halves() const { return sub_scales == 2 ? 2 : 1; }
  constexpr int scale_bytes() const { return scale_dtype == DType::f32 ? 4 : 2; }
  constexpr int64_t header_bytes() const {
    return kPanelRows * ((has_min ? 2 : 1) * scale_bytes() + (has_zero ? 1 : 0));
  }
  constexpr int64_t sub_bytes() const { return kPanelRows * sub_scales * (has_min ? 2 : 1); }
  constexpr int64_t group_bytes() const { return sub_bytes() + kPanelRows * kGroup * bits / 8; }
  constexpr int64_t run_bytes() const { return header_bytes() + groups * group_bytes(); }
  constexpr int64_t panel_bytes(int64_t K) const { return K / (groups * kGroup) * run_bytes(); }
};

// By WeightFormat. Sources: ggml's ggml-common.h and ggml-quants.c; MXFP4 is that of the OCP (its scale of 8 bits, half
// of it here, is a bfloat16 without a mantissa).
constexpr FormatInfo kWeightFormats[kNumWeightFormats] = {
    {"q4_0", 18, 4, 8, nullptr, DType::f16, false, false, 1, 0},
    {"q4_1", 20, 4, 0, nullptr, DType::f16, true, false, 1, 0},
    {"q5_0", 22, 5, 16, nullptr, DType::f16, false, false, 1, 0},
    {"q5_1", 24, 5, 0, nullptr, DType::f16, true, false, 1, 0},
    {"q8_0", 34, 8, 0, nullptr, DType::f16, false, false, 1, 0},
    {"q2_k", 84, 2, 0, nullptr, DType::f16, true, false, 8, 2},
    {"q3_k", 110, 3, 4, nullptr, DType::f16, false, false, 8, 2},
    {"q4_k", 144, 4, 0, nullptr, DType::f16, true, false, 8, 1},
    {"q5_k", 176, 5, 0, nullptr, DType::f16, true, false, 8, 1},
    {"q6_k", 210, 6, 32, nullptr, DType::f16, false, false, 8, 2},
    {"iq4_nl", 18, 4, 0, kIq4Values, DType::f16, false, false, 1, 0},
    {"iq4_xs", 136, 4, 0, kIq4Values, DType::f16, false, false, 8, 1},
    {"mxfp4", 17, 4, 0, kE2m1Values, DType::bf16, false, false, 1, 0},
    {"int4_32", 21, 4, 0, nullptr, DType::f32, false, true, 1, 0},
    {"int4_128", 69, 4, 0, nullptr, DType::f32, false, true, 4, 0},
    {"int8_128", 132, 8, 0, nullptr, DType::f32, false, false, 4, 0},
};

constexpr const FormatInfo& info_of(WeightFormat format) { return kWeightFormats[static_cast<int>(format)]; }

// Of a packed weight, as it is read.
inline double bytes_per_element(WeightFormat format) {
  const FormatInfo& info = info_of(format);
  return static_cast<double>(info.run_bytes()) / (info.groups * kGroup * kPanelRows);
}

// The format of a name. Throws std::invalid_argument for another name.
WeightFormat weight_format(const std::string& name);

// Rows of a packed weight that have one format. They begin with a panel.
struct Segment {
  WeightFormat format;
  int64_t rows;
  int64_t offset;  // of the first panel, in bytes

  int64_t panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
  int64_t bytes(int64_t K) const { return panels() * info_of(format).panel_bytes(K); }
};

// What the layout of a packed weight of K columns says, as in "q4_k:4096,q6_k:1024". Throws std::invalid_argument for a
// text that is none, and for a K that is no whole number of a format's blocks.
std::vector<Segment> segments_of(const std::string& layout, int64_t K);

// Packs 16 rows as they lie in a file; a row that is null is 0. Returns how many blocks have a scale that is not finite
// or a zero that is no code.
int64_t pack_panel(WeightFormat format, const uint8_t* const (&rows)[kPanelRows], int64_t K, uint8_t* to);

// Row `lane` of a packed panel, its values rounded to float32 once.
void unpack_row(WeightFormat format, const uint8_t* panel, int lane, int64_t K, float* out);

}  // namespace fdpp
