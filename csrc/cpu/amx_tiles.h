// The AMX instructions, for AmxLinear. All eight tiles are 16 rows of 64 bytes. Written as assembly, because the
// compilers' intrinsics take the number of a tile as a literal only.
#pragma once

#include "common/dtype.h"

namespace fdpp::cpu {

struct AmxTiles {
  static void configure() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }
  static void release() { __asm__ volatile("tilerelease"); }

  template <int Tile>
  FDPP_INLINE static void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(Tile));
  }
  // `stride`: bfloat16 elements between rows.
  template <int Tile>
  FDPP_INLINE static void load(const bf16* p, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                     :
                     : "r"(p), "r"(stride * static_cast<int64_t>(sizeof(bf16))), "i"(Tile)
                     : "memory");
  }
  template <int Tile>
  FDPP_INLINE static void store(float* p) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(int64_t{64}), "i"(Tile) : "memory");
  }
  template <int C, int A, int B>
  FDPP_INLINE static void multiply() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
};

}  // namespace fdpp::cpu
