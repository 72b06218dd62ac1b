// Conversions between float and the 16-bit types, against the definition of their bits.
#include "check.h"

using namespace fdpp;
using namespace fdpp::test;

namespace {

// The value of sign, exponent and mantissa as IEEE 754 defines it.
double decode(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int sign = (bits >> (exponent_bits + mantissa_bits)) & 1;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  double value;
  if (exponent == (1 << exponent_bits) - 1) {
    value = mantissa == 0 ? std::numeric_limits<double>::infinity() : kNan;
  } else if (exponent == 0) {
    value = std::ldexp(mantissa, 1 - bias - mantissa_bits);
  } else {
    value = std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
  }
  return sign != 0 ? -value : value;
}

template <typename T>
void check_every_pattern(int exponent_bits, int mantissa_bits) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const T narrow{static_cast<uint16_t>(bits)};
    const double expected = decode(bits, exponent_bits, mantissa_bits);
    const float wide = to_float(narrow);
    CHECK_CLOSE(wide, expected, 0.0, "to_float of " + std::to_string(bits));
    if (std::isnan(expected)) {
      CHECK(std::isnan(to_float(from_float<T>(wide))), "NaN " + std::to_string(bits));
    } else {
      CHECK(from_float<T>(wide).bits == bits, "round trip of " + std::to_string(bits));
    }
  }
}

// Around the middle between two neighbours, rounding goes to the nearer one, and to the even one in the middle itself.
template <typename T>
void check_rounding(uint32_t largest_finite) {
  for (uint32_t bits = 0; bits < largest_finite; ++bits) {
    const float low = to_float(T{static_cast<uint16_t>(bits)}), high = to_float(T{static_cast<uint16_t>(bits + 1)});
    const float middle = static_cast<float>((double{low} + high) / 2);
    const uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    CHECK(from_float<T>(middle).bits == even, "middle above " + std::to_string(bits));
    CHECK(from_float<T>(std::nextafterf(middle, 0.0f)).bits == bits, "below the middle above " + std::to_string(bits));
    CHECK(from_float<T>(std::nextafterf(middle, INFINITY)).bits == bits + 1,
          "over the middle above " + std::to_string(bits));
    CHECK(from_float<T>(-middle).bits == (even | 0x8000u), "negative middle above " + std::to_string(bits));
  }
}

}  // namespace

TEST(bfloat16_round_trip) { check_every_pattern<bf16>(8, 7); }
TEST(float16_round_trip) { check_every_pattern<f16>(5, 10); }
TEST(bfloat16_rounding) { check_rounding<bf16>(0x7f7f); }
TEST(float16_rounding) { check_rounding<f16>(0x7bff); }

TEST(overflow_gives_infinity) {
  CHECK(from_float<f16>(65519.0f).bits == 0x7bff, "the largest number");
  CHECK(from_float<f16>(65520.0f).bits == 0x7c00, "rounds up to infinity");
  CHECK(from_float<f16>(-1e30f).bits == 0xfc00, "-infinity");
  CHECK(from_float<f16>(INFINITY).bits == 0x7c00, "infinity");
  CHECK(from_float<bf16>(3.4028235e38f).bits == 0x7f80, "rounds up to infinity");
  CHECK(from_float<bf16>(-INFINITY).bits == 0xff80, "-infinity");
}
