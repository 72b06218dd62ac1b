// Fragments of 16 x 16 for waves of 32 lanes with a 16 x 16 x 16 matrix instruction ("RDNA3 Instruction Set
// Architecture", V_WMMA_F32_16X16X16: operands hold row lane % 16 with all 16 depths, the same in both halves of the
// wave; results hold column lane % 16 and rows 2 i + lane / 16). Beside arch.h, Arch has
//   void Arch::multiply<T>(float (&c)[8], const uint32_t (&a)[8], const uint32_t (&b)[8])    c += a b
//
// The products are computed transposed (K Q^T and V^T P^T): the scores of a query lie in lanes i and i + 16, which
// exchange them to form the operand that follows. Interface: fragments_m16n8k16.h.
#pragma once

#include "gpu/arch.h"

namespace fdpp {

template <typename Policy, typename Element>
struct FragmentsWave32 {
  using Arch = Policy;
  using T = Element;
  static constexpr int kValues = 8;
  static constexpr int kSlots = 1;
  struct Probabilities {
    uint32_t b[8];
  };

  FDPP_INLINE static int row(int lane, int) { return lane % 16; }
  FDPP_INLINE static constexpr int slot(int) { return 0; }
  FDPP_INLINE static int column(int lane, int value) { return 2 * value + lane / 16; }
  FDPP_INLINE static bool leads_row(int lane) { return lane < 16; }

  FDPP_INLINE static float max_of_row(float x) {
    const float other = Arch::shuffle_xor(x, 16);
    return other > x ? other : x;
  }

  FDPP_INLINE static float sum_of_row(float x) { return x + Arch::shuffle_xor(x, 16); }

  FDPP_INLINE static void multiply_scores(float (&c)[kValues], const T* q, const T* k, int stride) {
    uint32_t a[8], b[8];
    load_row(a, k, stride);
    load_row(b, q, stride);
    Arch::template multiply<T>(c, a, b);
  }

  FDPP_INLINE static Probabilities pack(const float (&p)[kValues]) {
    const bool upper = Arch::thread_index() % 32 >= 16;
    Probabilities out;
    for (int i = 0; i < 8; ++i) {
      const float other = Arch::shuffle_xor(p[i], 16);
      out.b[i] = Arch::template pack<T>(upper ? other : p[i], upper ? p[i] : other);
    }
    return out;
  }

  FDPP_INLINE static void multiply_values(float (&o)[kValues], const Probabilities& p, const T* v, int stride) {
    const uint16_t* column = reinterpret_cast<const uint16_t*>(v) + Arch::thread_index() % 16;
    uint32_t a[8];
    for (int i = 0; i < 8; ++i) {
      const uint32_t low = Arch::shared_load(column + 2 * i * stride),
                     high = Arch::shared_load(column + (2 * i + 1) * stride);
      a[i] = low | high << 16;
    }
    Arch::template multiply<T>(o, a, p.b);
  }

  static constexpr int kInputs = 16;
  static constexpr int kOutputs = 8;
  struct Row {
    uint32_t words[8];
  };
  using Weights = Row;
  using Inputs = Row;

  FDPP_INLINE static int output_row(int lane, int value) { return 2 * value + lane / 16; }
  FDPP_INLINE static int output_column(int lane, int) { return lane % 16; }

  FDPP_INLINE static Weights load_weights(const T* rows, int stride) {
    Row row;
    load_row(row.words, rows, stride);
    return row;
  }
  FDPP_INLINE static Inputs load_inputs(const T* rows, int stride) { return load_weights(rows, stride); }

  FDPP_INLINE static void multiply_linear(float (&c)[kOutputs], const Weights& w, const Inputs& x) {
    Arch::template multiply<T>(c, w.words, x.words);
  }

  // The rows of a panel are spread over the lanes such that the sums of a lane, every second row, are neighbours.
  static constexpr int kCodeRows = 1, kCodeLanes = 1, kSumsOfRow = 1;
  FDPP_INLINE static int code_row(int lane) { return lane % 2 * 8 + lane % 16 / 2; }
  FDPP_INLINE static int code_part(int) { return 0; }
  FDPP_INLINE static int input_row(int lane) { return lane % 16; }
  FDPP_INLINE static int sum_row(int lane) { return lane / 16 * 8; }
  template <int kPairs>
  FDPP_OUTLINE static void multiply_pairs(float (&c)[kOutputs], const uint32_t (&w)[kCodeRows][kPairs],
                                          const uint32_t (&x)[kPairs]) {
    FDPP_UNROLL
    for (float& sum : c) sum = 0.0f;
    FDPP_UNROLL
    for (int i = 0; i < kPairs; i += 8) {
      uint32_t a[8], b[8];
      FDPP_UNROLL
      for (int j = 0; j < 8; ++j) a[j] = w[0][i + j], b[j] = x[i + j];
      Arch::template multiply<T>(c, a, b);
    }
  }

 private:
  FDPP_INLINE static void load_row(uint32_t (&x)[8], const T* rows, int stride) {
    const Bytes16* line = reinterpret_cast<const Bytes16*>(rows + Arch::thread_index() % 16 * stride);
    for (int i = 0; i < 2; ++i) {
      const Bytes16 half = Arch::shared_load(line + i);
      for (int j = 0; j < 4; ++j) x[4 * i + j] = half.words[j];
    }
  }
};

}  // namespace fdpp
