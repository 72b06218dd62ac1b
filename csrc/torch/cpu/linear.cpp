// gemv, flat_gemm, linear, and what takes packed weights, of the CPU.
#include <stdexcept>
#include <string>

#include "common/linear_choice.h"
#include "cpu/backend.h"
#include "cpu/cpu_features.h"
#include "torch/arguments/linear.h"
#include "torch/cpu/cpu_threads.h"

namespace fdpp {

namespace {

cpu::Threads threads_of(const LinearInputs& arguments, const LinearCall& call) {
  const void* const residual = arguments.residual.has_value() ? arguments.residual->data_ptr() : nullptr;
  return recorded_or_torch_threads({{call.params.x, arguments.x.data_ptr()}, {call.params.residual, residual}});
}

Tensor run(const LinearInputs& arguments, LinearCall& call, Impl impl, int config) {
  const bool finishes = has_epilogue(call.params);
  const Tensor product = empty_with_last(arguments.x, call.params.N);
  const Tensor out = finishes ? make_output(arguments, call) : product;
  LinearParams p = product_params(call, product);
  const cpu::Kernels& kernels = cpu::kernels();
  if (impl == Impl::gemv) {
    config = cpu::kGemv;
  } else if (config < 0) {
    config = cpu::default_flat_gemm_config(kernels, p);
  }
  Scratch packed = scratch(arguments.op, kernels.packed_x_bytes(p, config));
  p.packed_x = packed.get();
  const cpu::Threads threads = threads_of(arguments, call);
  const EpilogueParams epilogue{call.params, product.data_ptr()};
  cpu::linear(kernels, p, config, finishes ? &epilogue : nullptr, threads);
  keep(threads, std::move(packed));
  if (finishes) keep(threads, product);
  return out;
}

// torch's linear, where that is slow with the dtype converted to float32 and back.
Tensor vendor_linear(const LinearInputs& arguments) {
  const Tensor& x = arguments.x;
  if (x.scalar_type() == ScalarType::Float || !cpu::kernels().half_gemm_is_slow) return aten_linear(arguments);
  const auto wide = [](const Tensor& tensor) { return torch::stable::to(tensor, ScalarType::Float); };
  const Tensor wide_x = wide(x), wide_weight = wide(arguments.weight);
  OptionalTensor bias;
  if (arguments.bias.has_value()) bias = wide(*arguments.bias);
  const LinearInputs converted{arguments.op,       wide_x, wide_weight,         bias,
                               arguments.residual, false,  arguments.activation};
  return torch::stable::to(aten_linear(converted), x.scalar_type());
}

Tensor gemv_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& residual,
                bool gated, const OptionalString& activation) {
  const LinearInputs arguments{"gemv", x, weight, bias, residual, gated, activation};
  LinearCall call = linear_call(arguments);
  return run(arguments, call, Impl::gemv, -1);
}

Tensor flat_gemm_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t config,
                     const OptionalTensor& residual, bool gated, const OptionalString& activation) {
  const LinearInputs arguments{"flat_gemm", x, weight, bias, residual, gated, activation};
  LinearCall call = linear_call(arguments);
  check_flat_rows(arguments.op, call.params.M);
  check_flat_config(arguments.op, config, flat_gemm_configs(0, call.params.dtype));
  return run(arguments, call, Impl::flat_gemm, static_cast<int>(config));
}

Tensor linear_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& residual,
                  bool gated, const OptionalString& activation) {
  const LinearInputs arguments{"linear", x, weight, bias, residual, gated, activation};
  LinearCall call = linear_call(arguments);
  const LinearParams& p = call.params;
  const Choice choice = choose_linear(0, p.dtype, p.N, p.K, p.M);
  if (choice.impl != Impl::aten) return run(arguments, call, choice.impl, choice.config);
  const Tensor product = vendor_linear(arguments);
  if (!has_epilogue(p)) return product;
  const Tensor out = make_output(arguments, call);
  cpu::linear_epilogue(cpu::kernels(), {p, product.data_ptr()}, torch_threads());
  return out;
}

// ImplC: torch's linear with the weight unpacked to the dtype of x.
Tensor unpacked_linear(const LinearInputs& arguments, QuantizedCall& quantized) {
  const LinearParams& p = quantized.linear.params;
  const Tensor weight = torch::stable::new_empty(arguments.x, {p.N, p.K});
  const cpu::Threads threads = torch_threads();
  cpu::dequantize_rows({p.dtype, p.K, p.N, p.N, quantized.weight.data, nullptr, weight.data_ptr()},
                       quantized.weight.segments, threads);
  const Tensor product = vendor_linear(
      {arguments.op, arguments.x, weight, arguments.bias, arguments.residual, false, arguments.activation});
  if (!has_epilogue(p)) return product;
  const Tensor out = make_output(arguments, quantized.linear);
  cpu::linear_epilogue(cpu::kernels(), {p, product.data_ptr()}, threads);
  return out;
}

Tensor quantized_linear_cpu(const Tensor& x, const Tensor& weight, const std::string& layout,
                            const OptionalTensor& bias, const OptionalTensor& residual, bool gated,
                            const OptionalString& activation) {
  const LinearInputs arguments{"quantized_linear", x, weight, bias, residual, gated, activation};
  QuantizedCall quantized = quantized_call(arguments, layout);
  LinearCall& call = quantized.linear;
  const std::vector<Choice> choices = packed_choices(0, call.params, quantized.weight.segments);
  if (choices.front().impl == Impl::aten) return unpacked_linear(arguments, quantized);
  const bool finishes = has_epilogue(call.params);
  const Tensor product = empty_with_last(x, call.params.N);
  const Tensor out = finishes ? make_output(arguments, call) : product;
  LinearParams p = product_params(call, product);
  Scratch packed = scratch(arguments.op, cpu::quantized_x_bytes(p));
  p.packed_x = packed.get();
  const EpilogueParams epilogue{call.params, product.data_ptr()};
  const cpu::Threads threads = threads_of(arguments, call);
  cpu::quantized_linear(cpu::kernels(), p, quantized.weight.segments, choices, finishes ? &epilogue : nullptr, threads);
  keep(threads, std::move(packed));
  if (finishes) keep(threads, product);
  return out;
}

Tensor dequantize_rows_cpu(const Tensor& weight, const std::string& layout, int64_t columns, const Tensor& rows,
                           ScalarType dtype) {
  const DequantizeCall call = dequantize_call(weight, layout, columns, rows, dtype);
  const cpu::Threads threads = recorded_or_torch_threads({{call.params.rows, rows.data_ptr()}});
  for (int64_t i = 0; threads.recording == nullptr && i < call.params.count; ++i) {  // those of a replay come later
    const int64_t row = call.params.rows[i];
    if (row < 0 || row >= call.weight.rows) {
      fail("dequantize_rows", "rows must be from 0 to " + std::to_string(call.weight.rows - 1) + "; got " +
                                  std::to_string(row) + " at place " + std::to_string(i));
    }
  }
  cpu::dequantize_rows(call.params, call.weight.segments, threads);
  return call.out;
}

STABLE_TORCH_LIBRARY_IMPL(fdpp, CPU, m) {
  m.impl("gemv", TORCH_BOX(&gemv_cpu));
  m.impl("flat_gemm", TORCH_BOX(&flat_gemm_cpu));
  m.impl("linear", TORCH_BOX(&linear_cpu));
  m.impl("quantized_linear", TORCH_BOX(&quantized_linear_cpu));
  m.impl("dequantize_rows", TORCH_BOX(&dequantize_rows_cpu));
}

void check_device(int device) {
  if (device != 0) throw std::invalid_argument("the CPU is device 0; got " + std::to_string(device));
}

}  // namespace

std::string linear_device(int device) {
  check_device(device);
  return cpu::device_name();
}

int flat_gemm_configs(int device, DType dtype, int format) {
  if (device != kAnyDevice) check_device(device);
  return format == kPlain ? cpu::kernels().flat_gemm_configs(dtype) : 0;
}

bool has_gemv(int) { return true; }

Choice linear_rule(int device, DType dtype, int64_t, int64_t K, int64_t M, int format) {
  check_device(device);
  return format == kPlain ? cpu_rule(dtype, K, M, cpu::kernels().half_gemm_is_slow) : packed_cpu_rule(M);
}

// Each row by itself.
Choice batch_invariant_choice(int, DType, int64_t, int64_t, int) { return {Impl::gemv, -1, Source::batch_invariant}; }

}  // namespace fdpp
