// The kernels of one instruction set, as a table of functions. Each isa_*.cpp fills one; cpu_features.cpp picks one.
#pragma once

#include "common/params.h"

namespace fdpp::cpu {

// Rows of the weights that a flat GEMM keeps in registers at once, by its configuration; a quarter as many rows of x as
// there are registers.
constexpr int kFlatGemmColumns[] = {2, 3};
constexpr int kNumFlatGemmConfigs = sizeof(kFlatGemmColumns) / sizeof(kFlatGemmColumns[0]);
constexpr int kGemv = -1;
constexpr int kAttentionTile = 64, kLeastAttentionTile = 16;  // keys per tile, at most and at least

struct Kernels {
  const char* name;
  // The processor multiplies no 16-bit types, and torch's GEMM of them takes some ten times that of float32.
  bool half_gemm_is_slow;

  // One split of the kv heads [first_head, first_head + heads) of a sequence: fills its part of params.partial. With
  // params.tile = kAttentionTile, or half or a quarter of it.
  void (*attention_split)(const AttentionParams&, int batch, int first_head, int heads, int split);
  // Sums the splits of one (sequence, kv head) and writes params.out.
  void (*attention_merge)(const AttentionParams&, int batch, int kv_head);

  // Configurations 0 .. n - 1 of flat_gemm for a dtype.
  int (*flat_gemm_configs)(DType);
  // x -> packed_x, for flat_gemm with a configuration or, with kGemv, for gemv.
  int64_t (*packed_x_bytes)(const LinearParams&, int config);
  void (*pack_x)(const LinearParams&, int config);
  // Output columns [begin, end), after pack_x.
  void (*gemv)(const LinearParams&, int64_t begin, int64_t end);
  void (*flat_gemm)(const LinearParams&, int config, int64_t begin, int64_t end);

  // Of packed weights. Rows [begin, end) of x -> packed_x, for both of those that follow; panels [begin, end).
  void (*quantized_pack_x)(const LinearParams&, int64_t begin, int64_t end);
  void (*quantized_gemv)(const QuantizedParams&, int64_t begin, int64_t end);
  void (*quantized_flat_gemm)(const QuantizedParams&, int64_t begin, int64_t end);

  // Columns [begin, end) of the product, both even where it is gated.
  void (*linear_epilogue)(const EpilogueParams&, int64_t begin, int64_t end);
  // Rows [begin, end).
  void (*norm)(const NormParams&, int64_t begin, int64_t end);
  void (*argmax)(const ArgmaxParams&, int64_t begin, int64_t end);
  void (*silu_mul)(const SiluMulParams&, int64_t begin, int64_t end);
  // Tokens [begin, end) of batch * query_len.
  void (*rope_append)(const RopeParams&, int64_t begin, int64_t end);

  // Reads bytes [p, p + n) (multiples of 64) and returns a value that depends on all of them.
  uint64_t (*read_all)(const void* p, int64_t n);
};

extern const Kernels kPortableKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;
Kernels amx_kernels();
#endif

}  // namespace fdpp::cpu
