// gemv, flat_gemm and linear: tensors -> LinearParams -> a backend, or torch's own linear.
#include "torch/core/linear.h"

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/backend.h"
#include "cpu/cpu_features.h"
#include "torch/shared/checks.h"
#include "torch/core/cpu_threads.h"

namespace fdpp {

namespace {

// Every call of linear reads the pointer, so tables that were replaced stay alive (they are few and small).
std::atomic<const DataflowTable*> cpu_table{nullptr};

// x as rows with a single stride, and the parameters that read it.
struct Problem {
  Tensor x;
  LinearParams params;
};

Problem problem_of(const char* op, const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  const Argument input(op, "x", x), w(op, "weight", weight);
  LinearParams p{};
  p.dtype = input.floating();
  input.last_dim_contiguous();
  p.K = x.size(x.dim() - 1);
  w.same_device_as(input).same_dtype_as(input).shape("[N, K]", {kAnySize, p.K}).last_dim_contiguous();
  p.N = weight.size(0);
  p.weight = weight.data_ptr();
  p.weight_stride = weight.stride(0);
  if (bias.has_value()) {
    Argument(op, "bias", *bias).same_device_as(input).same_dtype_as(input).shape("[N]", {p.N}).contiguous();
    p.bias = bias->data_ptr();
  }
  Rows rows = rows_of(x);
  if (rows.inner != rows.count) rows = rows_of(torch::stable::contiguous(x));
  p.M = rows.count;
  p.x = rows.tensor.data_ptr();
  p.x_stride = rows.inner_stride;
  return {rows.tensor, p};
}

Tensor run_cpu(const char* op, Impl impl, int config, const Tensor& x, Problem problem) {
  LinearParams& p = problem.params;
  const Tensor out = empty_with_last(x, p.N);
  p.out = out.data_ptr();
  const cpu::Kernels& kernels = cpu::kernels();
  if (impl == Impl::gemv) {
    config = cpu::kGemv;
  } else if (config < 0) {
    config = cpu::default_flat_gemm_config(kernels, p);
  }
  const Scratch packed = scratch(op, kernels.packed_x_bytes(p, config));
  p.packed_x = packed.get();
  if (impl == Impl::gemv) {
    cpu::gemv(kernels, p, torch_threads());
  } else {
    cpu::flat_gemm(kernels, p, config, torch_threads());
  }
  return out;
}

Tensor aten_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(x), torch::stable::detail::from(weight),
                                    torch::stable::detail::from(bias)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor gemv_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  return run_cpu("gemv", Impl::gemv, -1, x, problem_of("gemv", x, weight, bias));
}

Tensor flat_gemm_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t config) {
  Problem problem = problem_of("flat_gemm", x, weight, bias);
  if (problem.params.M > kMaxFlatRows) {
    fail("flat_gemm", "x must have at most " + std::to_string(kMaxFlatRows) + " rows; got " + std::to_string(problem.params.M));
  }
  const int configs = cpu::kernels().flat_gemm_configs(problem.params.dtype);
  if (config < -1 || config >= configs) {
    fail("flat_gemm",
         "config must be -1 (default) or below " + std::to_string(configs) + "; got " + std::to_string(config));
  }
  return run_cpu("flat_gemm", Impl::flat_gemm, static_cast<int>(config), x, std::move(problem));
}

Tensor linear_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  Problem problem = problem_of("linear", x, weight, bias);
  const LinearParams& p = problem.params;
  const Choice choice = choose_cpu(p.dtype, p.N, p.K, p.M);
  if (choice.impl == Impl::aten) return aten_linear(x, weight, bias);
  return run_cpu("linear", choice.impl, choice.config, x, std::move(problem));
}

STABLE_TORCH_LIBRARY_IMPL(fdpp, CPU, m) {
  m.impl("gemv", TORCH_BOX(&gemv_cpu));
  m.impl("flat_gemm", TORCH_BOX(&flat_gemm_cpu));
  m.impl("linear", TORCH_BOX(&linear_cpu));
}

}  // namespace

void set_cpu_table(std::unique_ptr<const DataflowTable> table) {
  static std::mutex mutex;
  static std::vector<std::unique_ptr<const DataflowTable>> tables;
  const std::lock_guard<std::mutex> lock(mutex);
  tables.push_back(std::move(table));
  cpu_table.store(tables.back().get(), std::memory_order_release);
}

Choice choose_cpu(DType dtype, int64_t N, int64_t K, int64_t M) {
  const DataflowTable* table = cpu_table.load(std::memory_order_acquire);
  const Choice rule = cpu_rule(dtype, M);
  return table == nullptr ? rule : table->choose(dtype, N, K, M, rule);
}

}  // namespace fdpp
