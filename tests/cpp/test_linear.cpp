// gemv and flat_gemm of every instruction set on ragged sizes, in buffers of exactly the size of the tensors.
#include <algorithm>

#include "amx_model.h"
#include "check.h"
#include "cpu/backend.h"
#include "cpu/cpu_features.h"
#include "linear_case.h"

using namespace fdpp;
using namespace fdpp::test;

namespace {

constexpr LinearSize kSizes[] = {{1, 1, 1},   {1, 5, 0},    {0, 7, 9},    {3, 0, 9},    {1, 17, 63},  {2, 63, 17},
                                 {3, 64, 64}, {5, 13, 100}, {7, 100, 31}, {8, 33, 577}, {13, 29, 65}, {64, 40, 33}};

// `config`: of flat_gemm, or cpu::kGemv.
void check_linear(const cpu::Kernels& kernels, DType dtype, LinearSize size, int config, bool with_bias,
                  int num_threads) {
  LinearCase linear(dtype, size, with_bias);
  LinearParams& p = linear.params;
  const Scratch packed = scratch(kernels.packed_x_bytes(p, config));
  p.packed_x = packed.get();
  cpu::linear(kernels, p, config, nullptr, threads(num_threads));
  linear.check(std::string(kernels.name) + " config " + std::to_string(config));
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
      for (const LinearSize size : kSizes) {
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
