// A linear layer in buffers of exactly the size of the tensors, and what comes out of it.
#pragma once

#include "check.h"
#include "common/params.h"

namespace fdpp::test {

struct LinearSize {
  int64_t M, N, K;
};

class LinearCase {
 public:
  // Tensors are aligned to 8 or 16 bytes, and rows are a multiple of `stride` elements apart.
  LinearCase(DType dtype, LinearSize size, bool with_bias, size_t alignment = 8, int64_t stride = 1)
      : size_(size),
        random_(static_cast<uint64_t>(size.M * 10007 + size.N * 101 + size.K)),
        x_stride_(row_stride(stride)),
        weight_stride_(row_stride(stride)),
        x_(Buffer::normal(dtype, elements(size.M, x_stride_), random_, 1.0, alignment)),
        weight_(Buffer::normal(dtype, elements(size.N, weight_stride_), random_, 1.0, alignment)),
        bias_(Buffer::normal(dtype, size.N, random_)),
        out_(dtype, size.M * size.N) {
    for (int64_t m = 0; m + 1 < size.M; ++m) x_.forbid(m * x_stride_ + size.K, (m + 1) * x_stride_);
    for (int64_t n = 0; n + 1 < size.N; ++n) weight_.forbid(n * weight_stride_ + size.K, (n + 1) * weight_stride_);
    params.dtype = params.out_dtype = dtype;
    params.M = size.M, params.N = size.N, params.K = size.K;
    params.x = x_.data(), params.x_stride = x_stride_;
    params.weight = weight_.data(), params.weight_stride = weight_stride_;
    params.bias = with_bias ? bias_.data() : nullptr;
    params.out = out_.data();
  }

  void check(const std::string& who) const {
    const auto [M, N, K] = size_;
    const DType dtype = params.dtype;
    const std::string what =
        who + " " + name_of(dtype) + " M " + std::to_string(M) + " N " + std::to_string(N) + " K " + std::to_string(K);
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t n = 0; n < N; ++n) {
        double sum = params.bias != nullptr ? bias_[n] : 0.0, magnitude = std::fabs(sum);
        for (int64_t k = 0; k < K; ++k) {
          const double product = x_[m * x_stride_ + k] * weight_[n * weight_stride_ + k];
          sum += product;
          magnitude += std::fabs(product);
        }
        const double tolerance =
            roundoff(dtype) * std::fabs(sum) + (4 + std::sqrt(K)) * kFloatRoundoff * magnitude + underflow(dtype);
        CHECK_CLOSE(out_[m * N + n], sum, tolerance, what);
      }
    }
  }

  LinearParams params{};

 private:
  int64_t row_stride(int64_t stride) { return (size_.K + stride - 1) / stride * stride + stride * pick(random_, 0, 3); }
  int64_t elements(int64_t rows, int64_t stride) const { return rows == 0 ? 0 : (rows - 1) * stride + size_.K; }

  LinearSize size_;
  Random random_;
  int64_t x_stride_, weight_stride_;
  Buffer x_, weight_, bias_, out_;
};

}  // namespace fdpp::test
