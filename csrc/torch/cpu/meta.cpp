// The operators on meta tensors: the checks of the real ones, and a result without data. They are for the fakes of
// Python (fdpp/rules/fakes.py), which see symbolic sizes where this library sees numbers only; hence namespaces of
// their own: one with the checks of every backend, one with those of the GPUs on top.
#include "torch/arguments/schemas.h"
#include "torch/gpu_operators.h"

namespace fdpp {

namespace {

template <bool kGpu>
void check_matrix(const char* op, const char* name, const Tensor& tensor) {
  if (kGpu) check_matrix_dtype(op, name, tensor);
}

template <bool kGpu>
Tensor meta_norm(const NormInputs& inputs) {
  const Tensor out = norm_call(inputs).out;
  check_matrix<kGpu>(inputs.op, "x", inputs.x);
  return out;
}

template <bool kGpu>
struct MetaOperators : Norms<meta_norm<kGpu>> {
  static Tensor attention(const AttentionArguments& arguments) {
    const AttentionParams p = attention_params(arguments);
    if (kGpu) check_gpu_attention(arguments);
    return empty_like_device(arguments.q, {p.batch, p.query_len, p.query_heads, p.head_dim});
  }

  static Tensor gemv(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& residual,
                     bool gated, const OptionalString& activation) {
    const LinearInputs arguments{"gemv", x, weight, bias, residual, gated, activation};
    LinearCall call = linear_call(arguments);
    check_matrix<kGpu>("gemv", "x", x);
    return make_output(arguments, call);
  }

  static Tensor flat_gemm(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t config,
                          const OptionalTensor& residual, bool gated, const OptionalString& activation) {
    const LinearInputs arguments{"flat_gemm", x, weight, bias, residual, gated, activation};
    LinearCall call = linear_call(arguments);
    check_flat_rows(arguments.op, call.params.M);
    const int configs = kGpu ? kFlatTiles * kNumSpreads : flat_gemm_configs(kAnyDevice, call.params.dtype);
    check_flat_config(arguments.op, config, configs);
    check_matrix<kGpu>("flat_gemm", "x", x);
    return make_output(arguments, call);
  }

  static Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& residual, bool gated, const OptionalString& activation) {
    const LinearInputs arguments{"linear", x, weight, bias, residual, gated, activation};
    LinearCall call = linear_call(arguments);
    // A product alone can be aten::linear's, which takes float32 on every device.
    if (has_epilogue(call.params)) check_matrix<kGpu>("linear", "x", x);
    return make_output(arguments, call);
  }

  static Tensor quantized_linear(const Tensor& x, const Tensor& weight, const std::string& layout,
                                 const OptionalTensor& bias, const OptionalTensor& residual, bool gated,
                                 const OptionalString& activation) {
    const LinearInputs arguments{"quantized_linear", x, weight, bias, residual, gated, activation};
    QuantizedCall call = kGpu ? gpu_quantized_call(arguments, layout) : quantized_call(arguments, layout);
    return make_output(arguments, call.linear);
  }

  static Tensor dequantize_rows(const Tensor& weight, const std::string& layout, int64_t columns, const Tensor& rows,
                                ScalarType dtype) {
    if (kGpu) Argument("dequantize_rows", "weight", weight).aligned();
    return dequantize_call(weight, layout, columns, rows, dtype).out;
  }

  static Tensor silu_mul(const Tensor& gate_up) {
    const Tensor out = silu_mul_call(gate_up).out;
    check_matrix<kGpu>("silu_mul", "gate_up", gate_up);
    return out;
  }

  static Tensor rope_append(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin,
                            const Tensor& positions, const Tensor& k_cache, const Tensor& v_cache,
                            const OptionalTensor& block_table, bool interleaved) {
    const Tensor out = rope_call({q, k, v, cos, sin, positions, k_cache, v_cache, block_table, interleaved}).out;
    check_matrix<kGpu>(kRopeAppend, "q", q);
    return out;
  }
};

STABLE_TORCH_LIBRARY(fdpp_meta, m) { schemas::define(m); }
STABLE_TORCH_LIBRARY_IMPL(fdpp_meta, Meta, m) { implement<MetaOperators<false>>(m); }
STABLE_TORCH_LIBRARY(fdpp_meta_gpu, m) { schemas::define(m); }
STABLE_TORCH_LIBRARY_IMPL(fdpp_meta_gpu, Meta, m) { implement<MetaOperators<true>>(m); }

}  // namespace

}  // namespace fdpp
