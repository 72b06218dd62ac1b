// The AMX instructions as the Intel 64 and IA-32 Architectures SDM defines them (TILELOADD, TILESTORED, TDPBF16PS), for
// processors without AMX. A tile starts as NaN, and using one before configure() or after release() is an error.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "common/dtype.h"
#include "cpu/amx_linear.h"
#include "cpu/cpu_features.h"

namespace fdpp::test {

struct AmxModel {
  static constexpr int kRows = 16, kBytes = 64;
  struct Tile {
    unsigned char row[kRows][kBytes];
  };
  static inline thread_local Tile tiles[8];
  static inline thread_local bool configured = false;

  static void configure() {
    configured = true;
    std::memset(tiles, 0xff, sizeof tiles);
  }
  static void release() { configured = false; }
  static Tile& tile(int index) {
    if (!configured) throw std::logic_error("an AMX tile was used without a configuration");
    return tiles[index];
  }

  template <int T>
  static void zero() {
    std::memset(&tile(T), 0, sizeof(Tile));
  }
  template <int T>
  static void load(const bf16* p, int64_t stride) {
    for (int r = 0; r < kRows; ++r) std::memcpy(tile(T).row[r], p + r * stride, kBytes);
  }
  template <int T>
  static void store(float* p) {
    std::memcpy(p, &tile(T), sizeof(Tile));
  }
  template <int C, int A, int B>
  static void multiply() {
    for (int m = 0; m < kRows; ++m) {
      float* const c = reinterpret_cast<float*>(tile(C).row[m]);
      const bf16* const a = reinterpret_cast<const bf16*>(tile(A).row[m]);
      for (int k = 0; k < kRows; ++k) {
        const bf16* const b = reinterpret_cast<const bf16*>(tile(B).row[k]);
        for (int n = 0; n < kRows; ++n) {
          c[n] += to_float(a[2 * k]) * to_float(b[2 * n]);
          c[n] += to_float(a[2 * k + 1]) * to_float(b[2 * n + 1]);
        }
      }
    }
  }
};

// The portable kernels with the flat GEMM on modelled tiles as the last configuration of bfloat16.
inline const cpu::Kernels& amx_model_kernels() {
  using Amx = cpu::AmxLinear<AmxModel>;
  static const cpu::Kernels kernels = [] {
    cpu::Kernels table = cpu::kPortableKernels;
    table.name = "amx_model";
    table.flat_gemm_configs = [](DType dtype) { return cpu::kNumFlatGemmConfigs + (dtype == DType::bf16); };
    table.packed_x_bytes = [](const LinearParams& p, int config) {
      return config < cpu::kNumFlatGemmConfigs ? cpu::kPortableKernels.packed_x_bytes(p, config)
                                               : Amx::packed_x_bytes(p);
    };
    table.pack_x = [](const LinearParams& p, int config) {
      config < cpu::kNumFlatGemmConfigs ? cpu::kPortableKernels.pack_x(p, config) : Amx::pack_x(p);
    };
    table.flat_gemm = [](const LinearParams& p, int config, int64_t begin, int64_t end) {
      config < cpu::kNumFlatGemmConfigs ? cpu::kPortableKernels.flat_gemm(p, config, begin, end)
                                        : Amx::flat_gemm(p, begin, end);
    };
    return table;
  }();
  return kernels;
}

}  // namespace fdpp::test
