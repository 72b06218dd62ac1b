#include "common/weight_format.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace fdpp {

namespace {

// A block of a file, its parts apart.
struct Block {
  uint8_t codes[8 * kGroup];
  uint32_t scale = 0, min = 0;  // bits of their dtype
  uint8_t zero = 0;
  int8_t sub_scales[16], sub_mins[16];
};

uint16_t half_at(const uint8_t* from) { return static_cast<uint16_t>(from[0] | from[1] << 8); }

// The low halves of `count` bytes, then the high ones.
void nibbles(const uint8_t* from, int count, uint8_t* codes) {
  for (int i = 0; i < count; ++i) codes[i] = from[i] & 15;
  for (int i = 0; i < count; ++i) codes[count + i] = from[i] >> 4;
}

// Bit i of 32 becomes bit 4 of code i.
void fifth_bits(const uint8_t* from, uint8_t* codes) {
  constexpr uint64_t kOnes = 0x0101010101010101;
  for (int i = 0; i < kGroup / 8; ++i) {
    const uint64_t bits = from[i] * kOnes & 0x8040201008040201;  // bit j in byte j
    uint64_t eight;
    std::memcpy(&eight, codes + 8 * i, 8);
    eight |= ((bits + 0x7f * kOnes) >> 7 & kOnes) << 4;
    std::memcpy(codes + 8 * i, &eight, 8);
  }
}

// Two bits of each of 32 bytes, from bit `shift` on, at bit `to` of the codes, which have lower bits only.
void two_bits(const uint8_t* from, int shift, int to, uint8_t* codes) {
  for (int i = 0; i < kGroup; ++i)
    codes[i] = static_cast<uint8_t>((to > 0 ? codes[i] : 0) | (from[i] >> shift & 3) << to);
}

// ggml's get_scale_min_k4: eight scales and eight minimums of 6 bits in 12 bytes.
void scales_and_mins(const uint8_t* from, Block& block) {
  for (int j = 0; j < 4; ++j) {
    block.sub_scales[j] = static_cast<int8_t>(from[j] & 63);
    block.sub_mins[j] = static_cast<int8_t>(from[j + 4] & 63);
    block.sub_scales[j + 4] = static_cast<int8_t>((from[j + 8] & 15) | (from[j] >> 6) << 4);
    block.sub_mins[j + 4] = static_cast<int8_t>((from[j + 8] >> 4) | (from[j + 4] >> 6) << 4);
  }
}

// Minimums that a format subtracts are negated.
constexpr uint16_t kSign = 0x8000;

constexpr int kMostZero = 16;  // of codes of 4 bits: GPTQ stores it less 1

void read_block(WeightFormat format, const uint8_t* from, Block& block) {
  switch (format) {
    case WeightFormat::q4_0:
    case WeightFormat::iq4_nl: block.scale = half_at(from); return nibbles(from + 2, 16, block.codes);
    case WeightFormat::q4_1:
      block.scale = half_at(from), block.min = half_at(from + 2);
      return nibbles(from + 4, 16, block.codes);
    case WeightFormat::q5_0:
      block.scale = half_at(from);
      nibbles(from + 6, 16, block.codes);
      return fifth_bits(from + 2, block.codes);
    case WeightFormat::q5_1:
      block.scale = half_at(from), block.min = half_at(from + 2);
      nibbles(from + 8, 16, block.codes);
      return fifth_bits(from + 4, block.codes);
    case WeightFormat::q8_0:
      block.scale = half_at(from);
      std::memcpy(block.codes, from + 2, kGroup);
      return;
    case WeightFormat::int4_32:
    case WeightFormat::int4_128:
      std::memcpy(&block.scale, from, 4);
      block.zero = from[4];
      for (int i = 0; i < info_of(format).groups; ++i) nibbles(from + 5 + 16 * i, 16, block.codes + kGroup * i);
      return;
    case WeightFormat::int8_128:
      std::memcpy(&block.scale, from, 4);
      std::memcpy(block.codes, from + 4, 4 * kGroup);
      return;
    case WeightFormat::mxfp4:
      // 2^(e - 128), which is subnormal for e < 2. From 253 on, values leave float32; 255 stands for NaN.
      block.scale = static_cast<uint16_t>(from[0] > 252 ? 0x7fc0 : from[0] < 2 ? 0x20 << from[0] : (from[0] - 1) << 7);
      return nibbles(from + 1, 16, block.codes);
    case WeightFormat::q4_k:
    case WeightFormat::q5_k: {
      block.scale = half_at(from), block.min = half_at(from + 2) ^ kSign;
      scales_and_mins(from + 4, block);
      const bool fifth = format == WeightFormat::q5_k;
      for (int i = 0; i < 4; ++i) nibbles(from + (fifth ? 48 : 16) + 32 * i, 32, block.codes + 64 * i);
      if (!fifth) return;
      for (int group = 0; group < 8; ++group) {
        for (int i = 0; i < kGroup; ++i) block.codes[group * kGroup + i] |= (from[16 + i] >> group & 1) << 4;
      }
      return;
    }
    case WeightFormat::q6_k:
      block.scale = half_at(from + 208);
      std::memcpy(block.sub_scales, from + 192, 16);
      for (int part = 0; part < 2; ++part) {
        const uint8_t *low = from + 64 * part, *high = from + 128 + 32 * part;
        uint8_t* codes = block.codes + 128 * part;
        nibbles(low, 64, codes);
        for (int i = 0; i < 4; ++i) two_bits(high, 2 * i, 4, codes + kGroup * i);
      }
      return;
    case WeightFormat::q2_k:
      block.scale = half_at(from + 80), block.min = half_at(from + 82) ^ kSign;
      for (int i = 0; i < 16; ++i) {
        block.sub_scales[i] = static_cast<int8_t>(from[i] & 15), block.sub_mins[i] = static_cast<int8_t>(from[i] >> 4);
      }
      for (int i = 0; i < 8; ++i) two_bits(from + 16 + i / 4 * 32, 2 * (i % 4), 0, block.codes + kGroup * i);
      return;
    case WeightFormat::q3_k: {
      block.scale = half_at(from + 108);
      const uint8_t* scales = from + 96;
      for (int i = 0; i < 16; ++i) {
        const int low = scales[i % 8] >> (4 * (i / 8)) & 15, high = scales[8 + i % 4] >> (2 * (i / 4)) & 3;
        block.sub_scales[i] = static_cast<int8_t>((low | high << 4) - 32);
      }
      for (int i = 0; i < 8; ++i) {
        uint8_t* codes = block.codes + kGroup * i;
        two_bits(from + 32 + i / 4 * 32, 2 * (i % 4), 0, codes);
        for (int j = 0; j < kGroup; ++j) codes[j] = static_cast<uint8_t>(codes[j] | (from[j] >> i & 1) << 2);
      }
      return;
    }
    case WeightFormat::iq4_xs:
      block.scale = half_at(from);
      for (int i = 0; i < 8; ++i) {
        const int low = from[4 + i / 2] >> (4 * (i % 2)) & 15, high = half_at(from + 2) >> (2 * i) & 3;
        block.sub_scales[i] = static_cast<int8_t>((low | high << 4) - 32);
        nibbles(from + 8 + 16 * i, 16, block.codes + kGroup * i);
      }
      return;
  }
}

bool is_finite(DType dtype, uint32_t bits) {
  const uint32_t exponent = dtype == DType::f16 ? 0x7c00 : dtype == DType::bf16 ? 0x7f80 : 0x7f800000;
  return (bits & exponent) != exponent;
}

// Number `index` of an array.
float value_at(DType dtype, const uint8_t* from, int index) {
  uint32_t bits = 0;
  const int bytes = size_of(dtype);
  std::memcpy(&bits, from + bytes * index, bytes);
  if (dtype == DType::f32) return bits_to_float(bits);
  const auto half = static_cast<uint16_t>(bits);
  return dtype == DType::f16 ? to_float(f16{half}) : to_float(bf16{half});
}

// Bits [shift, shift + kBits) of the 32 codes of a group, as the words of a row in a plane; or back.
template <int kBits>
struct Plane {
  static constexpr uint32_t kMask = (1u << kBits) - 1;
  static constexpr int kEach = 16 / kBits;  // codes of half a word

  static void write(const uint8_t* codes, int shift, uint8_t* to) {
    for (int v = 0; v < kBits; ++v) {
      const uint8_t* own = codes + 2 * kEach * v;
      uint32_t word = 0;
      if constexpr (kBits == 8) {
        word = own[0] | own[2] << 8 | own[1] << 16 | uint32_t{own[3]} << 24;
      } else {
        for (int i = 0; i < kEach / 4; ++i) {
          uint64_t eight;
          std::memcpy(&eight, own + 8 * i, 8);
          eight >>= shift;
          word |= (every_second(eight) | every_second(eight >> 8) << 16) << (4 * kBits * i);
        }
      }
      std::memcpy(to + v * kPanelRows * 4, &word, 4);
    }
  }

  static void read(const uint8_t* from, int shift, uint8_t* codes) {
    for (int v = 0; v < kBits; ++v) {
      uint32_t word;
      std::memcpy(&word, from + v * kPanelRows * 4, 4);
      for (int s = 0; s < kEach; ++s) {
        uint8_t* pair = codes + 2 * (kEach * v + s);
        pair[0] |= static_cast<uint8_t>((word >> (kBits * s) & kMask) << shift);
        pair[1] |= static_cast<uint8_t>((word >> (16 + kBits * s) & kMask) << shift);
      }
    }
  }

 private:
  // The low bits of bytes 0, 2, 4 and 6, side by side.
  static uint32_t every_second(uint64_t bytes) {
    bytes &= kMask * uint64_t{0x0001000100010001};
    bytes |= bytes >> (16 - kBits);
    bytes &= ((uint64_t{1} << 2 * kBits) - 1) * uint64_t{0x0000000100000001};
    return static_cast<uint32_t>(bytes | bytes >> (32 - 2 * kBits)) & ((1u << 4 * kBits) - 1);
  }
};

// Calls fn(Plane, its first bit of a code, its place) for each plane of a group.
template <typename Fn>
void for_each_plane(int bits, Fn fn) {
  int shift = 0, offset = 0;
  const auto visit = [&]<int kBits>(Plane<kBits> plane) {
    if ((bits & kBits) == 0) return;
    fn(plane, shift, offset);
    shift += kBits;
    offset += kBits * kPanelRows * 4;
  };
  visit(Plane<8>{}), visit(Plane<4>{}), visit(Plane<2>{}), visit(Plane<1>{});
}

}  // namespace

WeightFormat weight_format(const std::string& name) {
  std::string names;
  for (int i = 0; i < kNumWeightFormats; ++i) {
    if (name == kWeightFormats[i].name) return static_cast<WeightFormat>(i);
    names += (i == 0 ? "" : ", ") + std::string(kWeightFormats[i].name);
  }
  throw std::invalid_argument("format must be one of " + names + "; got '" + name.substr(0, 80) + "'");
}

std::vector<Segment> segments_of(const std::string& layout, int64_t K) {
  constexpr int64_t kMostRows = int64_t{1} << 31, kMostBytes = int64_t{1} << 48;
  std::vector<Segment> segments;
  int64_t offset = 0;
  for (size_t begin = 0; begin <= layout.size();) {
    const size_t end = std::min(layout.find(',', begin), layout.size());
    const size_t colon = layout.find(':', begin);
    int64_t rows = 0;
    const char* const last = layout.data() + end;
    const auto parsed = colon < end ? std::from_chars(layout.data() + colon + 1, last, rows) : std::from_chars_result{};
    if (parsed.ptr != last || parsed.ec != std::errc{} || rows < 1 || rows > kMostRows) {
      throw std::invalid_argument("layout must be formats with their rows, such as 'q4_k:4096,q6_k:1024'; got '" +
                                  layout.substr(0, 80) + "'");
    }
    const Segment segment{weight_format(layout.substr(begin, colon - begin)), rows, offset};
    const FormatInfo& info = info_of(segment.format);
    if (K < 1 || K > kMostRows || K % (info.groups * kGroup) != 0) {
      throw std::invalid_argument(std::string("columns of ") + info.name + " must be a multiple of " +
                                  std::to_string(info.groups * kGroup) + "; got " + std::to_string(K));
    }
    if (segment.bytes(K) > kMostBytes - offset) throw std::invalid_argument("layout must be of at most 2^48 bytes");
    offset += segment.bytes(K);
    segments.push_back(segment);
    begin = end + 1;
  }
  return segments;
}

int64_t pack_panel(WeightFormat format, const uint8_t* const (&rows)[kPanelRows], int64_t K, uint8_t* to) {
  const FormatInfo& info = info_of(format);
  int64_t damaged = 0;
  std::memset(to, 0, info.panel_bytes(K));
  for (int64_t run = 0; run < K / (info.groups * kGroup); ++run, to += info.run_bytes()) {
    for (int lane = 0; lane < kPanelRows; ++lane) {
      if (rows[lane] == nullptr) continue;
      Block block;
      read_block(format, rows[lane] + run * info.file_bytes, block);
      std::memcpy(to + info.scale_bytes() * lane, &block.scale, info.scale_bytes());
      if (info.has_min) std::memcpy(to + info.scale_bytes() * (kPanelRows + lane), &block.min, info.scale_bytes());
      if (info.has_zero) to[info.scale_bytes() * kPanelRows + lane] = block.zero;
      damaged += !is_finite(info.scale_dtype, block.scale) || !is_finite(info.scale_dtype, block.min) ||
                 block.zero > kMostZero;
      for (int group = 0; group < info.groups; ++group) {
        uint8_t* at = to + info.header_bytes() + group * info.group_bytes();
        for (int i = 0; i < info.sub_scales; ++i) {
          at[i * kPanelRows + lane] = static_cast<uint8_t>(block.sub_scales[group * info.sub_scales + i]);
          if (!info.has_min) continue;
          at[(info.sub_scales + i) * kPanelRows + lane] =
              static_cast<uint8_t>(block.sub_mins[group * info.sub_scales + i]);
        }
        at += info.sub_bytes() + 4 * lane;
        const uint8_t* codes = block.codes + group * kGroup;
        for_each_plane(info.bits, [=](auto plane, int shift, int offset) { plane.write(codes, shift, at + offset); });
      }
    }
  }
  return damaged;
}

void unpack_row(WeightFormat format, const uint8_t* panel, int lane, int64_t K, float* out) {
  const FormatInfo& info = info_of(format);
  for (int64_t run = 0; run < K / (info.groups * kGroup); ++run, panel += info.run_bytes()) {
    const float scale = value_at(info.scale_dtype, panel, lane);
    const float min = info.has_min ? value_at(info.scale_dtype, panel, kPanelRows + lane) : 0.0f;
    const int zero = info.has_zero ? panel[info.scale_bytes() * kPanelRows + lane] : info.zero;
    for (int group = 0; group < info.groups; ++group) {
      const uint8_t* at = panel + info.header_bytes() + group * info.group_bytes();
      uint8_t codes[kGroup] = {};
      for_each_plane(info.bits, [&](auto plane, int shift, int offset) {
        plane.read(at + info.sub_bytes() + 4 * lane + offset, shift, codes);
      });
      const auto factor = [=](int index) {
        return static_cast<float>(static_cast<int8_t>(at[index * kPanelRows + lane]));
      };
      for (int half = 0; half < 2; ++half) {
        const int sub = half * (info.sub_scales - 1);
        const float own_scale = info.sub_scales > 0 ? scale * factor(sub) : scale;
        const float own_min = info.sub_scales > 0 && info.has_min ? min * factor(info.sub_scales + sub) : min;
        for (int k = 0; k < kGroup / 2; ++k) {
          const int code = codes[half * (kGroup / 2) + k];
          const int value = info.codebook != nullptr ? info.codebook[code]
                            : info.bits == 8         ? static_cast<int8_t>(code)
                                                     : code - zero;
          const float scaled = own_scale * static_cast<float>(value);
          *out++ = info.has_min ? scaled + own_min : scaled;
        }
      }
    }
  }
}

}  // namespace fdpp
