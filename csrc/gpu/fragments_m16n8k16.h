// Fragments of 16 x 16 for warps of 32 lanes with a 16 x 8 x 16 matrix instruction (PTX ISA, "Matrix Fragments for
// mma.m16n8k16"). Beside arch.h, Arch has
//   void Arch::matrix_load(uint32_t (&x)[4], const void* row)
//   void Arch::matrix_load_transposed(uint32_t (&x)[4], const void* row)
//     ldmatrix.x4: lane i gives the address of row i % 8 of the 8 x 8 matrix i / 8; x[m] is the lane's part of matrix m
//   void Arch::multiply<T>(float* c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1)    c [4] += a b
//
// Interface of all fragments: a 16 x 16 accumulator lies as kValues values in a lane, in kSlots rows; row(), slot() and
// column() are its only coordinates. Queries are rows; keys (of scores) and dimensions (of outputs) are columns.
//
// Interface for linear layers: 16 rows of the weight by kInputs rows of x, both as rows of 16 elements in shared
// memory, give kOutputs sums in a lane, at output_row() of the weight and output_column() of x.
//
// Interface for packed weights (common/weight_format.h), whose codes lie as pairs of K in the words of a row: a lane
// has kCodeRows rows of a panel, from code_row() on, and one part of their pairs of kCodeLanes, code_part().
// multiply_pairs() gives the products with the same pairs of row input_row() of x; value v of its sums is that of row
// sum_row() + v / kSumsOfRow of the panel and of row output_column() of x.
#pragma once

#include "gpu/arch.h"

namespace fdpp {

template <typename Policy, typename Element>
struct FragmentsM16N8K16 {
  using Arch = Policy;
  using T = Element;
  static constexpr int kValues = 8;
  static constexpr int kSlots = 2;
  struct Probabilities {
    uint32_t a[4];
  };

  FDPP_INLINE static int row(int lane, int slot) { return lane / 4 + 8 * slot; }
  FDPP_INLINE static constexpr int slot(int value) { return value / 2 % 2; }
  FDPP_INLINE static int column(int lane, int value) { return value / 4 * 8 + lane % 4 * 2 + value % 2; }
  FDPP_INLINE static bool leads_row(int lane) { return lane % 4 == 0; }  // one lane of those that share rows

  FDPP_INLINE static float max_of_row(float x) {
    for (int mask = 1; mask <= 2; mask *= 2) {
      const float other = Arch::shuffle_xor(x, mask);
      x = other > x ? other : x;
    }
    return x;
  }

  FDPP_INLINE static float sum_of_row(float x) {
    for (int mask = 1; mask <= 2; mask *= 2) x += Arch::shuffle_xor(x, mask);
    return x;
  }

  // c += q k^T for 16 dimensions of 16 queries and 16 keys; both in shared memory, rows `stride` elements apart.
  FDPP_INLINE static void multiply_scores(float (&c)[kValues], const T* q, const T* k, int stride) {
    const int lane = Arch::thread_index() % 32, matrix = lane / 8, line = lane % 8;
    uint32_t a[4], b[4];
    Arch::matrix_load(a, q + (matrix % 2 * 8 + line) * stride + matrix / 2 * 8);
    Arch::matrix_load(b, k + (matrix / 2 * 8 + line) * stride + matrix % 2 * 8);
    Arch::template multiply<T>(c, a, b[0], b[1]);
    Arch::template multiply<T>(c + 4, a, b[2], b[3]);
  }

  // The accumulator layout of two 16 x 8 results is the layout of a 16 x 16 left operand.
  FDPP_INLINE static Probabilities pack(const float (&p)[kValues]) {
    Probabilities out;
    for (int i = 0; i < 4; ++i) out.a[i] = Arch::template pack<T>(p[2 * i], p[2 * i + 1]);
    return out;
  }

  // o += p v for 16 keys and 16 dimensions of V [key][dimension] in shared memory.
  FDPP_INLINE static void multiply_values(float (&o)[kValues], const Probabilities& p, const T* v, int stride) {
    const int lane = Arch::thread_index() % 32, matrix = lane / 8, line = lane % 8;
    uint32_t b[4];
    Arch::matrix_load_transposed(b, v + (matrix % 2 * 8 + line) * stride + matrix / 2 * 8);
    Arch::template multiply<T>(o, p.a, b[0], b[1]);
    Arch::template multiply<T>(o + 4, p.a, b[2], b[3]);
  }

  static constexpr int kInputs = 8;
  static constexpr int kOutputs = 4;
  struct Weights {
    uint32_t a[4];
  };
  struct Inputs {
    uint32_t b[2];
  };

  FDPP_INLINE static int output_row(int lane, int value) { return lane / 4 + value / 2 * 8; }
  FDPP_INLINE static int output_column(int lane, int value) { return lane % 4 * 2 + value % 2; }

  FDPP_INLINE static Weights load_weights(const T* rows, int stride) {
    const int lane = Arch::thread_index() % 32, matrix = lane / 8, line = lane % 8;
    Weights w;
    Arch::matrix_load(w.a, rows + (matrix % 2 * 8 + line) * stride + matrix / 2 * 8);
    return w;
  }

  FDPP_INLINE static Inputs load_inputs(const T* rows, int stride) {
    const int lane = Arch::thread_index() % 32;
    const uint32_t* pair = reinterpret_cast<const uint32_t*>(rows + lane / 4 * stride + lane % 4 * 2);
    return {{Arch::shared_load(pair), Arch::shared_load(pair + 4)}};
  }

  // Operands straight from memory. A sum does not depend on the order of its terms, so a lane's two pairs of K in each
  // of two products are 8 elements that lie side by side: row direct_row() of the weight's fragment, and 8 below, and
  // of x, from element direct_element() of kDirectDepth on.
  static constexpr int kDirectDepth = 32;
  FDPP_INLINE static int direct_row(int lane) { return lane / 4; }
  FDPP_INLINE static int direct_element(int lane) { return lane % 4 * 8; }
  FDPP_INLINE static void multiply_direct(float (&c)[kOutputs], const Bytes16& upper, const Bytes16& lower,
                                          const Bytes16& x) {
    FDPP_UNROLL
    for (int i = 0; i < 4; i += 2) {
      const uint32_t a[4] = {upper.words[i], lower.words[i], upper.words[i + 1], lower.words[i + 1]};
      Arch::template multiply<T>(c, a, x.words[i], x.words[i + 1]);
    }
  }

  FDPP_INLINE static void multiply_linear(float (&c)[kOutputs], const Weights& w, const Inputs& x) {
    Arch::template multiply<T>(c, w.a, x.b[0], x.b[1]);
  }

  // As above: any pairs of K do, if they are the same of both operands. So do any rows: a lane has two neighbours.
  static constexpr int kCodeRows = 2, kCodeLanes = 4, kSumsOfRow = 2;
  FDPP_INLINE static int code_row(int lane) { return lane / 4 * 2; }
  FDPP_INLINE static int code_part(int lane) { return lane % 4; }
  FDPP_INLINE static int input_row(int lane) { return lane / 4; }
  FDPP_INLINE static int sum_row(int lane) { return code_row(lane); }
  template <int kPairs>
  FDPP_OUTLINE static void multiply_pairs(float (&c)[kOutputs], const uint32_t (&w)[kCodeRows][kPairs],
                                          const uint32_t (&x)[kPairs]) {
    FDPP_UNROLL
    for (float& sum : c) sum = 0.0f;
    FDPP_UNROLL
    for (int i = 0; i < kPairs; i += 2) {
      const uint32_t a[4] = {w[0][i], w[1][i], w[0][i + 1], w[1][i + 1]};
      Arch::template multiply<T>(c, a, x[i], x[i + 1]);
    }
  }
};

}  // namespace fdpp
