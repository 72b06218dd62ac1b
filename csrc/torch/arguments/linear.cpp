#include "torch/arguments/linear.h"

#include <algorithm>
#include <array>
#include <utility>

namespace fdpp {

namespace {

// x as rows with a single stride.
Rows single_stride(const Tensor& x) {
  Rows rows = rows_of(x);
  return rows.inner == rows.count ? rows : rows_of(torch::stable::contiguous(x));
}

Activation activation_of(const char* op, bool gated, const OptionalString& name) {
  if (!name.has_value()) return gated ? Activation::silu : Activation::identity;
  constexpr std::pair<const char*, Activation> kNames[] = {{"relu", Activation::relu},
                                                           {"silu", Activation::silu},
                                                           {"gelu", Activation::gelu},
                                                           {"gelu_tanh", Activation::gelu_tanh}};
  for (const auto& [known, activation] : kNames) {
    if (*name == known) return activation;
  }
  fail(op, "activation must be relu, silu, gelu or gelu_tanh; got '" + name->substr(0, 80) + "'");
}

}  // namespace

LinearCall linear_call(const LinearInputs& arguments) {
  const auto& [op, x, weight, bias, residual, gated, activation] = arguments;
  const Argument input(op, "x", x), w(op, "weight", weight);
  LinearParams p{};
  p.dtype = p.out_dtype = input.floating();
  input.last_dim_contiguous();
  p.K = x.size(x.dim() - 1);
  w.same_device_as(input).same_dtype_as(input).shape("[N, K]", {kAnySize, p.K}).last_dim_contiguous();
  p.N = weight.size(0);
  if (gated && p.N % 2 != 0) w.fail("have an even number of rows (gate and up in turn)");
  p.weight = weight.data_ptr();
  p.weight_stride = weight.stride(0);
  if (bias.has_value()) {
    Argument(op, "bias", *bias).same_device_as(input).same_dtype_as(input).shape("[N]", {p.N}).contiguous();
    p.bias = bias->data_ptr();
  }
  Rows rows = single_stride(x);
  p.M = rows.count;
  p.x = rows.tensor.data_ptr();
  p.x_stride = rows.inner_stride;
  LinearCall call{p, rows.tensor, std::nullopt};
  call.params.gated = gated;
  call.params.activation = activation_of(op, gated, activation);
  if (!residual.has_value()) return call;

  const Argument sum(op, "residual", *residual);
  call.params.out_dtype = sum.floating();
  if (call.params.out_dtype != p.dtype && call.params.out_dtype != DType::f32) {
    sum.fail("be float32 or have the dtype of x");
  }
  sum.same_device_as(input).last_dim_contiguous();
  const auto expected = x.sizes(), sizes = residual->sizes();
  const int64_t columns = out_columns(call.params);
  if (sizes.size() != expected.size() || !std::equal(sizes.begin(), sizes.end() - 1, expected.begin()) ||
      sizes[sizes.size() - 1] != columns) {
    sum.fail("have the shape of the result, that of x with a last dimension of " + std::to_string(columns));
  }
  rows = single_stride(*residual);
  call.residual = rows.tensor;
  call.params.residual = rows.tensor.data_ptr();
  call.params.residual_stride = rows.inner_stride;
  return call;
}

Tensor make_output(const LinearInputs& arguments, LinearCall& call) {
  const Tensor& like = arguments.residual.has_value() ? *arguments.residual : arguments.x;
  const Tensor out = empty_with_last(like, out_columns(call.params));
  call.params.out = out.data_ptr();
  return out;
}

LinearParams product_params(const LinearCall& call, const Tensor& product) {
  LinearParams p = call.params;
  p.gated = false;
  p.activation = Activation::identity;
  p.residual = nullptr;
  p.out_dtype = p.dtype;
  p.out = product.data_ptr();
  return p;
}

bool has_epilogue(const LinearParams& params) {
  return params.gated || params.activation != Activation::identity || params.residual != nullptr;
}

Tensor aten_linear(const LinearInputs& arguments) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(arguments.x), from(arguments.weight), from(arguments.bias)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  const Tensor product = torch::stable::contiguous(torch::stable::detail::to<Tensor>(stack[0]));
  // Kernels read the product in the dtype of x. The rules for autocast in Python (fdpp/rules/autocast.py) see to that;
  // a process without them gets here with autocast in force.
  const Argument x(arguments.op, "x", arguments.x);
  Argument(arguments.op, "the product of aten::linear", product).same_dtype_as(x);
  return product;
}

void check_flat_config(const char* op, int64_t config, int configs) {
  if (config < -1 || config >= configs) {
    fail(op, "config must be -1 (default) or below " + std::to_string(configs) + "; got " + std::to_string(config));
  }
}

void check_flat_rows(const char* op, int64_t M) {
  if (M > kMaxFlatRows) {
    fail(op, "x must have at most " + std::to_string(kMaxFlatRows) + " rows; got " + std::to_string(M));
  }
}

}  // namespace fdpp
