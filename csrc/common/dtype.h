// Element types of tensors, as the kernels see them. No torch, no vendor header.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace fdpp {

enum class DType : int { f32, bf16, f16 };

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return "float32";
    case DType::bf16: return "bfloat16";
    case DType::f16: return "float16";
  }
  return "?";
}

FDPP_INLINE int size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

struct bf16 {
  uint16_t bits;
};

struct f16 {
  uint16_t bits;
};

// Builtins: std::bit_cast is no device function.
FDPP_INLINE float bits_to_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }

FDPP_INLINE uint32_t float_to_bits(float value) { return __builtin_bit_cast(uint32_t, value); }

FDPP_INLINE float to_float(float x) { return x; }

FDPP_INLINE float to_float(bf16 x) { return bits_to_float(uint32_t{x.bits} << 16); }

// IEEE 754 binary16: shifted into place, exponent and mantissa form a float that is 2^112 too small, subnormals
// included; only infinities and NaN want their exponent set.
FDPP_INLINE float to_float(f16 x) {
  const float scaled = bits_to_float(uint32_t{x.bits & 0x7fffu} << 13) * 0x1p112f;
  const uint32_t infinite = (x.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  return bits_to_float(float_to_bits(scaled) | infinite | (uint32_t{x.bits & 0x8000u} << 16));
}

template <typename T>
FDPP_DEVICE T from_float(float x);

template <>
FDPP_INLINE float from_float<float>(float x) {
  return x;
}

// Round to nearest even; a NaN stays a NaN (quiet).
template <>
FDPP_INLINE bf16 from_float<bf16>(float x) {
  const uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
FDPP_INLINE f16 from_float<f16>(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to 65520 or more
  if (magnitude < 0x38800000u) {
    // Subnormal result: adding 0.5 lets the float adder round at 2^-24.
    const float rounded = bits_to_float(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (float_to_bits(rounded) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

}  // namespace fdpp
