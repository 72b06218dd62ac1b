// gemv and flat_gemm of every instruction set on ragged sizes, in buffers of exactly the size of the tensors.
#include <algorithm>

#include "amx_model.h"
#include "check.h"
#include "cpu/backend.h"
#include "cpu/cpu_features.h"

using namespace fdpp;
using namespace fdpp::test;

namespace {

struct Size {
  int64_t M, N, K;
};

constexpr Size kSizes[] = {{1, 1, 1},   {1, 5, 0},   {0, 7, 9},    {3, 0, 9},    {1, 17, 63},  {2, 63, 17},
                           {3, 64, 64}, {5, 13, 100}, {7, 100, 31}, {8, 33, 577}, {13, 29, 65}, {64, 40, 33}};

// `config`: of flat_gemm, or cpu::kGemv.
void check_linear(const cpu::Kernels& kernels, DType dtype, Size size, int config, bool with_bias, int num_threads) {
  Random random(static_cast<uint64_t>(size.M * 10007 + size.N * 101 + size.K));
  const auto [M, N, K] = size;
  const int64_t x_stride = K + pick(random, 0, 3), weight_stride = K + pick(random, 0, 3);
  const Buffer x = Buffer::normal(dtype, M == 0 ? 0 : (M - 1) * x_stride + K, random);
  const Buffer weight = Buffer::normal(dtype, N == 0 ? 0 : (N - 1) * weight_stride + K, random);
  const Buffer bias = Buffer::normal(dtype, N, random), out(dtype, M * N);
  for (int64_t m = 0; m + 1 < M; ++m) x.forbid(m * x_stride + K, (m + 1) * x_stride);
  for (int64_t n = 0; n + 1 < N; ++n) weight.forbid(n * weight_stride + K, (n + 1) * weight_stride);

  LinearParams p{};
  p.dtype = dtype;
  p.M = M, p.N = N, p.K = K;
  p.x = x.data(), p.x_stride = x_stride;
  p.weight = weight.data(), p.weight_stride = weight_stride;
  p.bias = with_bias ? bias.data() : nullptr;
  p.out = out.data();
  const Scratch packed = scratch(kernels.packed_x_bytes(p, config));
  p.packed_x = packed.get();
  if (config == cpu::kGemv) {
    cpu::gemv(kernels, p, threads(num_threads));
  } else {
    cpu::flat_gemm(kernels, p, config, threads(num_threads));
  }

  const std::string what = std::string(kernels.name) + " " + name_of(dtype) + " M " + std::to_string(M) + " N " +
                           std::to_string(N) + " K " + std::to_string(K) + " config " + std::to_string(config);
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double sum = with_bias ? bias[n] : 0.0, magnitude = std::fabs(sum);
      for (int64_t k = 0; k < K; ++k) {
        const double product = x[m * x_stride + k] * weight[n * weight_stride + k];
        sum += product;
        magnitude += std::fabs(product);
      }
      const double tolerance = roundoff(dtype) * std::fabs(sum) +
                               (4 + std::sqrt(K)) * kFloatRoundoff * magnitude + underflow(dtype);
      CHECK_CLOSE(out[m * N + n], sum, tolerance, what);
    }
  }
}

std::vector<const cpu::Kernels*> kernels_under_test() {
  std::vector<const cpu::Kernels*> all = cpu::available_kernels();
  all.push_back(&amx_model_kernels());
  return all;
}

}  // namespace

TEST(linear) {
  for (const cpu::Kernels* kernels : kernels_under_test()) {
    for (const DType dtype : kDTypes) {
      for (const Size size : kSizes) {
        for (int config = cpu::kGemv; config < kernels->flat_gemm_configs(dtype); ++config) {
          check_linear(*kernels, dtype, size, config, true, 1);
          check_linear(*kernels, dtype, size, config, false, 3);
        }
      }
    }
  }
}

TEST(linear_on_several_threads) {
  for (const cpu::Kernels* kernels : kernels_under_test()) {
    for (int config = cpu::kGemv; config < kernels->flat_gemm_configs(DType::bf16); ++config) {
      check_linear(*kernels, DType::bf16, {3, 401, 130}, config, true, 3);
    }
  }
}

TEST(read_all_depends_on_every_byte) {
  for (const cpu::Kernels* kernels : cpu::available_kernels()) {
    constexpr int64_t kBytes = 4096;
    const Scratch memory = scratch(kBytes);
    float* const values = reinterpret_cast<float*>(memory.get());
    std::fill(values, values + kBytes / 4, 1.0f);
    const uint64_t before = kernels->read_all(values, kBytes);
    for (int64_t i = 0; i < kBytes / 4; ++i) {
      values[i] = 3.0f;
      CHECK(kernels->read_all(values, kBytes) != before, std::string(kernels->name) + " float " + std::to_string(i));
      values[i] = 1.0f;
    }
  }
}
