// Fragments of 16 x 16 for waves of 64 lanes with a 16 x 16 x 16 matrix instruction ("AMD Instinct MI200 / MI300
// Instruction Set Architecture", V_MFMA_F32_16X16X16: operands hold row lane % 16 and depths 4 (lane / 16) + i, results
// column lane % 16 and rows 4 (lane / 16) + i). Beside arch.h, Arch has
//   void Arch::multiply<T>(float (&c)[4], Bytes8 a, Bytes8 b)    c += a b
//
// The products are computed transposed (K Q^T and V^T P^T), so that a lane's scores are its part of the operand that
// follows. Interface: fragments_m16n8k16.h.
#pragma once

#include "gpu/arch.h"

namespace fdpp {

template <typename Policy, typename Element>
struct FragmentsWave64 {
  using Arch = Policy;
  using T = Element;
  static constexpr int kValues = 4;
  static constexpr int kSlots = 1;
  using Probabilities = Bytes8;

  FDPP_INLINE static int row(int lane, int) { return lane % 16; }
  FDPP_INLINE static constexpr int slot(int) { return 0; }
  FDPP_INLINE static int column(int lane, int value) { return lane / 16 * 4 + value; }
  FDPP_INLINE static bool leads_row(int lane) { return lane < 16; }

  FDPP_INLINE static float max_of_row(float x) {
    for (int mask = 16; mask <= 32; mask *= 2) {
      const float other = Arch::shuffle_xor(x, mask);
      x = other > x ? other : x;
    }
    return x;
  }

  FDPP_INLINE static float sum_of_row(float x) {
    for (int mask = 16; mask <= 32; mask *= 2) x += Arch::shuffle_xor(x, mask);
    return x;
  }

  FDPP_INLINE static void multiply_scores(float (&c)[kValues], const T* q, const T* k, int stride) {
    const int lane = Arch::thread_index() % 64, offset = lane % 16 * stride + lane / 16 * 4;
    const Bytes8 a = Arch::shared_load(reinterpret_cast<const Bytes8*>(k + offset));
    const Bytes8 b = Arch::shared_load(reinterpret_cast<const Bytes8*>(q + offset));
    Arch::template multiply<T>(c, a, b);
  }

  FDPP_INLINE static Probabilities pack(const float (&p)[kValues]) {
    return {{Arch::template pack<T>(p[0], p[1]), Arch::template pack<T>(p[2], p[3])}};
  }

  FDPP_INLINE static void multiply_values(float (&o)[kValues], const Probabilities& p, const T* v, int stride) {
    const int lane = Arch::thread_index() % 64;
    const uint16_t* column = reinterpret_cast<const uint16_t*>(v) + lane / 16 * 4 * stride + lane % 16;
    Bytes8 a;
    for (int i = 0; i < 2; ++i) {
      const uint32_t low = Arch::shared_load(column + 2 * i * stride),
                     high = Arch::shared_load(column + (2 * i + 1) * stride);
      a.words[i] = low | high << 16;
    }
    Arch::template multiply<T>(o, a, p);
  }

  static constexpr int kInputs = 16;
  static constexpr int kOutputs = 4;
  using Weights = Bytes8;
  using Inputs = Bytes8;

  FDPP_INLINE static int output_row(int lane, int value) { return lane / 16 * 4 + value; }
  FDPP_INLINE static int output_column(int lane, int) { return lane % 16; }

  FDPP_INLINE static Weights load_weights(const T* rows, int stride) {
    const int lane = Arch::thread_index() % 64;
    return Arch::shared_load(reinterpret_cast<const Bytes8*>(rows + lane % 16 * stride + lane / 16 * 4));
  }
  FDPP_INLINE static Inputs load_inputs(const T* rows, int stride) { return load_weights(rows, stride); }

  FDPP_INLINE static void multiply_linear(float (&c)[kOutputs], const Weights& w, const Inputs& x) {
    Arch::template multiply<T>(c, w, x);
  }

  static constexpr int kCodeRows = 1, kCodeLanes = 4, kSumsOfRow = 1;
  FDPP_INLINE static int code_row(int lane) { return lane % 16; }
  FDPP_INLINE static int code_part(int lane) { return lane / 16; }
  FDPP_INLINE static int input_row(int lane) { return lane % 16; }
  FDPP_INLINE static int sum_row(int lane) { return lane / 16 * 4; }
  template <int kPairs>
  FDPP_OUTLINE static void multiply_pairs(float (&c)[kOutputs], const uint32_t (&w)[kCodeRows][kPairs],
                                          const uint32_t (&x)[kPairs]) {
    FDPP_UNROLL
    for (float& sum : c) sum = 0.0f;
    FDPP_UNROLL
    for (int i = 0; i < kPairs; i += 2) {
      Arch::template multiply<T>(c, Bytes8{{w[0][i], w[0][i + 1]}}, Bytes8{{x[i], x[i + 1]}});
    }
  }
};

}  // namespace fdpp
