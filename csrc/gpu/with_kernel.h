// Which kernel serves a call: the one place where run-time values become template arguments. `use` is called with
// std::type_identity<Kernel>; where there is no kernel, the result is as if value-initialised.
#pragma once

#include <type_traits>

#include "common/head_dims.h"
#include "gpu/attention_kernel.h"
#include "gpu/dequantize_kernel.h"
#include "gpu/direct_gemm_kernel.h"
#include "gpu/flat_gemm_kernel.h"
#include "gpu/gemv_kernel.h"
#include "gpu/gemv_plan.h"
#include "gpu/norm_kernel.h"
#include "gpu/packed_gemm_kernel.h"
#include "gpu/rope_kernel.h"
#include "gpu/silu_mul_kernel.h"

namespace fdpp {

template <typename Result, typename Use>
Result with_dtype(DType dtype, Use use) {
  switch (dtype) {
    case DType::f16: return use(std::type_identity<f16>{});
    case DType::bf16: return use(std::type_identity<bf16>{});
    case DType::f32: break;
  }
  return Result{};
}

template <typename Result, typename Arch, typename Use>
Result with_kernel(const AttentionParams& p, Use use) {
  return with_dtype<Result>(p.dtype, [&]<typename T>(std::type_identity<T>) -> Result {
    const auto with_tile = [&]<int D>(std::integral_constant<int, D>) -> Result {
      if (p.tile == 0) return use(std::type_identity<DecodeAttention<Arch, T, D, 0>>{});
      if constexpr (Arch::attention_tiles(D, 1).warps > 0)
        return use(std::type_identity<DecodeAttention<Arch, T, D, 1>>{});
      return Result{};
    };
    FDPP_WITH_HEAD_DIM(p.head_dim, return with_tile(std::integral_constant<int, D>{}))
    return Result{};
  });
}

template <typename Result, typename Arch, typename Use>
Result with_kernel(const GemvParams& p, Use use) {
  return with_dtype<Result>(p.linear.dtype, [&]<typename T>(std::type_identity<T>) -> Result {
    switch (p.linear.M) {
      case 1: return use(std::type_identity<Gemv<Arch, T, 1>>{});
      case 2: return use(std::type_identity<Gemv<Arch, T, 2>>{});
      case 3: return use(std::type_identity<Gemv<Arch, T, 3>>{});
    }
    return use(std::type_identity<Gemv<Arch, T, kGemvRows>>{});
  });
}

template <typename Result, typename Arch, typename Use>
Result with_kernel(const FlatGemmParams& p, Use use) {
  return with_dtype<Result>(p.linear.dtype, [&]<typename T>(std::type_identity<T>) -> Result {
    const auto with_padded_m = [&]<int kPaddedM>(std::integral_constant<int, kPaddedM>) -> Result {
      switch (p.tile) {
        case 0: return use(std::type_identity<FlatGemm<Arch, T, kPaddedM, 0>>{});
        case 1: return use(std::type_identity<FlatGemm<Arch, T, kPaddedM, 1>>{});
        case 2:
          if constexpr (Arch::flat_tile(kPaddedM, 2).rows > 0)
            return use(std::type_identity<DirectGemm<Arch, T, kPaddedM, 2>>{});
          break;
        case 3:
          if constexpr (Arch::flat_tile(kPaddedM, 3).rows > 0)
            return use(std::type_identity<FlatGemm<Arch, T, kPaddedM, 3>>{});
      }
      return Result{};
    };
    if constexpr (Arch::template Fragments<T>::kInputs == 8) {
      if (p.padded_m == 8) return with_padded_m(std::integral_constant<int, 8>{});
    }
    switch (p.padded_m) {
      case 16: return with_padded_m(std::integral_constant<int, 16>{});
      case 32: return with_padded_m(std::integral_constant<int, 32>{});
      case 64: return with_padded_m(std::integral_constant<int, 64>{});
    }
    return Result{};
  });
}

// Calls use(std::integral_constant<int, number>) with the number of the format.
template <typename Result, int kFormat = 0, typename Use>
Result with_format(WeightFormat format, Use use) {
  if constexpr (kFormat < kNumWeightFormats) {
    if (static_cast<int>(format) == kFormat) return use(std::integral_constant<int, kFormat>{});
    return with_format<Result, kFormat + 1>(format, use);
  }
  return Result{};
}

// Sanitizers multiply the time that compiling takes: there, one dtype stands for both.
#ifdef FDPP_SANITIZE
constexpr bool kPackedBf16 = false;
#else
constexpr bool kPackedBf16 = true;
#endif

template <typename Result, typename Arch, typename Use>
Result with_kernel(const PackedGemmParams& p, Use use) {
  return with_dtype<Result>(p.flat.linear.dtype, [&]<typename T>(std::type_identity<T>) -> Result {
    const auto with_padded_m = [&]<int kFormat>(std::integral_constant<int, kFormat>) -> Result {
      if constexpr (Arch::template Fragments<T>::kInputs == 8) {
        if (p.flat.padded_m == 8) return use(std::type_identity<PackedGemm<Arch, T, 8, kFormat>>{});
      }
      switch (p.flat.padded_m) {
        case 16: return use(std::type_identity<PackedGemm<Arch, T, 16, kFormat>>{});
        case 32: return use(std::type_identity<PackedGemm<Arch, T, 32, kFormat>>{});
      }
      return Result{};
    };
    if constexpr (kPackedBf16 || std::is_same_v<T, f16>) {
      return with_format<Result>(p.format, with_padded_m);
    } else {
      return Result{};
    }
  });
}

template <typename Result, typename Arch, typename Use>
Result with_kernel(const UnpackParams&, Use use) {
  return use(std::type_identity<Dequantize<Arch>>{});
}

template <typename Result, typename Arch, typename Use>
Result with_kernel(const EpilogueParams& p, Use use) {
  return with_dtype<Result>(p.linear.dtype, [&]<typename T>(std::type_identity<T>) {
    return use(std::type_identity<LinearEpilogue<Arch, T>>{});
  });
}

template <typename Result, typename Arch, typename Use>
Result with_kernel(const NormParams& p, Use use) {
  return with_dtype<Result>(p.dtype, [&]<typename T>(std::type_identity<T>) -> Result {
    const auto with_residual = [&]<typename R>(std::type_identity<R>) -> Result {
      const auto with_width = [&]<int kWidth>(std::integral_constant<int, kWidth>) -> Result {
        if (p.centered) return use(std::type_identity<Norm<Arch, T, R, kWidth, true>>{});
        return use(std::type_identity<Norm<Arch, T, R, kWidth, false>>{});
      };
      // Heads (of norms of q and k) and whole tokens.
      if (p.width <= 1024) return with_width(std::integral_constant<int, 1024>{});
      return with_width(std::integral_constant<int, 4096>{});
    };
    if (p.residual != nullptr && p.residual_dtype == DType::f32) return with_residual(std::type_identity<float>{});
    return with_residual(std::type_identity<T>{});
  });
}

template <typename Result, typename Arch, typename Use>
Result with_kernel(const SiluMulParams& p, Use use) {
  return with_dtype<Result>(
      p.dtype, [&]<typename T>(std::type_identity<T>) { return use(std::type_identity<SiluMul<Arch, T>>{}); });
}

template <typename Result, typename Arch, typename Use>
Result with_kernel(const RopeParams& p, Use use) {
  return with_dtype<Result>(
      p.dtype, [&]<typename T>(std::type_identity<T>) { return use(std::type_identity<RopeAppend<Arch, T>>{}); });
}

}  // namespace fdpp
