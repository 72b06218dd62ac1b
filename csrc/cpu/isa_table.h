// Builds the kernel table of one instruction set from its vector type. Included once by each isa_*.cpp, after the
// pragma that names the instruction set.
#pragma once

#include "common/head_dims.h"
#include "cpu/attention_kernels.h"
#include "cpu/fused_kernels.h"
#include "cpu/kernels.h"
#include "cpu/linear_kernels.h"
#include "cpu/quantized_kernels.h"

namespace fdpp::cpu {

// Runs the statement with `T` as the storage type of `dtype`.
#define FDPP_WITH_TYPE(dtype, ...) \
  switch (dtype) {                 \
    case DType::f32: {             \
      using T = float;             \
      __VA_ARGS__;                 \
      break;                       \
    }                              \
    case DType::bf16: {            \
      using T = ::fdpp::bf16;      \
      __VA_ARGS__;                 \
      break;                       \
    }                              \
    case DType::f16: {             \
      using T = ::fdpp::f16;       \
      __VA_ARGS__;                 \
      break;                       \
    }                              \
  }

// Runs the statement with `kFormat` as the constant.
#define FDPP_WITH_FORMAT(format, ...)       \
  switch (format) {                         \
    FDPP_FORMAT_CASE(q4_0, __VA_ARGS__)     \
    FDPP_FORMAT_CASE(q4_1, __VA_ARGS__)     \
    FDPP_FORMAT_CASE(q5_0, __VA_ARGS__)     \
    FDPP_FORMAT_CASE(q5_1, __VA_ARGS__)     \
    FDPP_FORMAT_CASE(q8_0, __VA_ARGS__)     \
    FDPP_FORMAT_CASE(q2_k, __VA_ARGS__)     \
    FDPP_FORMAT_CASE(q3_k, __VA_ARGS__)     \
    FDPP_FORMAT_CASE(q4_k, __VA_ARGS__)     \
    FDPP_FORMAT_CASE(q5_k, __VA_ARGS__)     \
    FDPP_FORMAT_CASE(q6_k, __VA_ARGS__)     \
    FDPP_FORMAT_CASE(iq4_nl, __VA_ARGS__)   \
    FDPP_FORMAT_CASE(iq4_xs, __VA_ARGS__)   \
    FDPP_FORMAT_CASE(mxfp4, __VA_ARGS__)    \
    FDPP_FORMAT_CASE(int4_32, __VA_ARGS__)  \
    FDPP_FORMAT_CASE(int4_128, __VA_ARGS__) \
    FDPP_FORMAT_CASE(int8_128, __VA_ARGS__) \
  }
#define FDPP_FORMAT_CASE(name, ...)                      \
  case WeightFormat::name: {                             \
    constexpr WeightFormat kFormat = WeightFormat::name; \
    __VA_ARGS__;                                         \
    break;                                               \
  }

template <typename V>
struct IsaTable {
  static void attention_split(const AttentionParams& p, int b, int first_head, int heads, int split) {
    FDPP_WITH_TYPE(p.dtype,
                   FDPP_WITH_HEAD_DIM(p.head_dim, AttentionKernels<V, T, D>::split(p, b, first_head, heads, split)))
  }
  static void attention_merge(const AttentionParams& p, int b, int h) {
    FDPP_WITH_TYPE(p.dtype, FDPP_WITH_HEAD_DIM(p.head_dim, AttentionKernels<V, T, D>::merge(p, b, h)))
  }
  static int flat_gemm_configs(DType) { return kNumFlatGemmConfigs; }
  static int64_t packed_x_bytes(const LinearParams& p, int) {
    FDPP_WITH_TYPE(p.dtype, return LinearKernels<V, T>::packed_x_bytes(p))
    return 0;
  }
  static void pack_x(const LinearParams& p, int config) {
    FDPP_WITH_TYPE(p.dtype, LinearKernels<V, T>::pack_x(p, config))
  }
  static void gemv(const LinearParams& p, int64_t begin, int64_t end) {
    FDPP_WITH_TYPE(p.dtype, LinearKernels<V, T>::gemv(p, begin, end))
  }
  static void flat_gemm(const LinearParams& p, int config, int64_t begin, int64_t end) {
    FDPP_WITH_TYPE(p.dtype, LinearKernels<V, T>::flat_gemm(p, config, begin, end))
  }
  static void quantized_pack_x(const LinearParams& p, int64_t begin, int64_t end) {
    FDPP_WITH_TYPE(p.dtype, QuantizedInput<V, T>::pack(p, begin, end))
  }
  static void quantized_gemv(const QuantizedParams& p, int64_t begin, int64_t end) {
    if constexpr (V::is_baseline) {  // whose compiler takes minutes for what has no instructions
      quantized_flat_gemm(p, begin, end);
    } else {
      FDPP_WITH_FORMAT(p.format, QuantizedKernels<V, kFormat>::gemv(p, begin, end))
    }
  }
  static void quantized_flat_gemm(const QuantizedParams& p, int64_t begin, int64_t end) {
    FDPP_WITH_FORMAT(p.format, QuantizedKernels<V, kFormat>::flat_gemm(p, begin, end))
  }
  static void norm(const NormParams& p, int64_t begin, int64_t end) {
    FDPP_WITH_TYPE(p.dtype, FusedKernels<V, T>::norm(p, begin, end))
  }
  static void argmax(const ArgmaxParams& p, int64_t begin, int64_t end) {
    FDPP_WITH_TYPE(p.dtype, FusedKernels<V, T>::argmax(p, begin, end))
  }
  static void linear_epilogue(const EpilogueParams& p, int64_t begin, int64_t end) {
    FDPP_WITH_TYPE(p.linear.dtype, FusedKernels<V, T>::linear_epilogue(p, begin, end))
  }
  static void silu_mul(const SiluMulParams& p, int64_t begin, int64_t end) {
    FDPP_WITH_TYPE(p.dtype, FusedKernels<V, T>::silu_mul(p, begin, end))
  }
  static void rope_append(const RopeParams& p, int64_t begin, int64_t end) {
    FDPP_WITH_TYPE(p.dtype, FusedKernels<V, T>::rope_append(p, begin, end))
  }
  static uint64_t read_all(const void* data, int64_t bytes) {
    const float* p = static_cast<const float*>(data);
    typename V::F sums[8];
    for (auto& sum : sums) sum = V::zero();
    const int64_t floats = bytes / static_cast<int64_t>(sizeof(float));
    for (int64_t i = 0; i + 8 * V::width <= floats; i += 8 * V::width) {
      for (int j = 0; j < 8; ++j) sums[j] = V::add(sums[j], V::load(p + i + j * V::width));
    }
    for (int j = 1; j < 8; ++j) sums[0] = V::add(sums[0], sums[j]);
    return float_to_bits(V::sum(sums[0]));
  }

  static constexpr Kernels kernels(const char* name, bool half_gemm_is_slow = false) {
    return {
        .name = name,
        .half_gemm_is_slow = half_gemm_is_slow,
        .attention_split = attention_split,
        .attention_merge = attention_merge,
        .flat_gemm_configs = flat_gemm_configs,
        .packed_x_bytes = packed_x_bytes,
        .pack_x = pack_x,
        .gemv = gemv,
        .flat_gemm = flat_gemm,
        .quantized_pack_x = quantized_pack_x,
        .quantized_gemv = quantized_gemv,
        .quantized_flat_gemm = quantized_flat_gemm,
        .linear_epilogue = linear_epilogue,
        .norm = norm,
        .argmax = argmax,
        .silu_mul = silu_mul,
        .rope_append = rope_append,
        .read_all = read_all,
    };
  }
};

}  // namespace fdpp::cpu
