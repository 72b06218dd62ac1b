// The twin of csrc/cuda/nvidia.h. Sections: PTX ISA 9.0, "Warp Level Matrix Instructions".
#pragma once

#include "gpu/attention_tiles.h"
#include "gpu/fragments_m16n8k16.h"
#include "gpu/linear_tiles.h"
#include "simt/policy.h"

namespace fdpp::simt {

struct Nvidia : Host<32> {
  template <typename T>
  using Fragments = FragmentsM16N8K16<Nvidia, T>;
  static constexpr AttentionTiles attention_tiles(int head_dim, int tile) { return async_tiles(head_dim, tile); }
  static constexpr FlatTile flat_tile(int padded_m, int tile) { return async_flat_tile(padded_m, tile); }
  static constexpr GemvTile kGemvTile{8, 2, 4};

  static void copy16(void* shared, const void* global, bool valid) { issue_copy(shared, valid ? global : nullptr); }
  static void copy_commit() { commit_copies(); }
  template <int N>
  static void copy_wait() {
    wait_copies(N);
  }

  // "Warp-level matrix load instruction: ldmatrix": lane l has elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
  static void matrix_load(uint32_t (&x)[4], const void* row, Where where = Where::current()) {
    const auto run = [](Load* const* lanes) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        for (int i = 0; i < 32; ++i) lanes[i]->result[matrix] = lanes[8 * matrix + i / 4]->words()[i % 4];
      }
    };
    load("matrix_load", x, row, run, where);
  }

  // With .trans: of column l / 4, elements 2 (l % 4) and 2 (l % 4) + 1.
  static void matrix_load_transposed(uint32_t (&x)[4], const void* row, Where where = Where::current()) {
    const auto run = [](Load* const* lanes) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        for (int i = 0; i < 32; ++i) {
          const int line = 8 * matrix + i % 4 * 2, column = i / 4;
          const uint32_t low = lanes[line]->words()[column / 2] >> 16 * (column % 2);
          const uint32_t high = lanes[line + 1]->words()[column / 2] >> 16 * (column % 2);
          lanes[i]->result[matrix] = (low & 0xffff) | high << 16;
        }
      }
    };
    load("matrix_load_transposed", x, row, run, where);
  }

  // "Matrix Fragments for mma.m16n8k16 with floating point type", with g = l / 4 and t = 2 (l % 4): word w of A has row
  // g + 8 (w % 2) and columns t + 8 (w / 2) and the next; word w of B rows t + 8 w and the next, and column g; element
  // e of C row g + 8 (e / 2) and column t + e % 2.
  template <typename T>
  static void multiply(float* c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Where where = Where::current()) {
    struct Operand {
      float* c;
      const uint32_t* a;
      uint32_t b[2];
    } operand{c, a, {b0, b1}};
    const auto run = [](Operand* const* lanes) {
      Matrix<16> a;
      Matrix<8> b, c;
      for (int i = 0; i < 32; ++i) {
        const Operand& lane = *lanes[i];
        const int group = i / 4, pair = i % 4 * 2;
        for (int e = 0; e < 2; ++e) {
          for (int word = 0; word < 4; ++word) {
            a.x[group + word % 2 * 8][pair + word / 2 * 8 + e] = element<T>(lane.a[word], e);
          }
          for (int word = 0; word < 2; ++word) {
            b.x[pair + word * 8 + e][group] = element<T>(lane.b[word], e);
            c.x[group + word * 8][pair + e] = lane.c[2 * word + e];
          }
        }
      }
      multiply_add(c, a, b);
      for (int i = 0; i < 32; ++i) {
        for (int e = 0; e < 4; ++e) lanes[i]->c[e] = c.x[i / 4 + e / 2 * 8][i % 4 * 2 + e % 2];
      }
    };
    meet("multiply", operand, run, where);
  }

 private:
  struct Load {
    const void* row;
    uint32_t* result;
    const uint32_t* words() const { return static_cast<const uint32_t*>(row); }
  };

  template <typename Run>
  static void load(const char* name, uint32_t (&x)[4], const void* row, Run run, Where where) {
    check_shared(row, 16, name);
    Load operand{row, x};
    meet(name, operand, run, where);
  }
};

}  // namespace fdpp::simt
