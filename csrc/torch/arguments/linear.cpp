#include "torch/arguments/linear.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <utility>

#include "common/linear_choice.h"

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

// What does not depend on how the weight is stored: N rows that start with params.weight.
static LinearCall product_call(const LinearInputs& arguments, LinearParams p) {
  const auto& [op, x, weight, bias, residual, gated, activation] = arguments;
  const Argument input(op, "x", x);
  if (gated && p.N % 2 != 0) Argument(op, "weight", weight).fail("have an even number of rows (gate and up in turn)");
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

// The dtypes and K of x.
static LinearParams params_of(const Argument& input, const Tensor& x) {
  LinearParams p{};
  p.dtype = p.out_dtype = input.floating();
  input.last_dim_contiguous();
  p.K = x.size(x.dim() - 1);
  return p;
}

LinearCall linear_call(const LinearInputs& arguments) {
  const Tensor& weight = arguments.weight;
  const Argument input(arguments.op, "x", arguments.x), w(arguments.op, "weight", weight);
  LinearParams p = params_of(input, arguments.x);
  w.same_device_as(input).same_dtype_as(input).shape("[N, K]", {kAnySize, p.K}).last_dim_contiguous();
  p.N = weight.size(0);
  p.weight = weight.data_ptr();
  p.weight_stride = weight.stride(0);
  return product_call(arguments, p);
}

PackedWeight packed_weight(const char* op, const Tensor& weight, const std::string& layout, int64_t columns) {
  PackedWeight packed;
  try {
    packed.segments = segments_of(layout, columns);
  } catch (const std::invalid_argument& error) {
    fail(op, error.what());
  }
  int64_t bytes = 0;
  for (const Segment& segment : packed.segments) {
    packed.rows += segment.rows;
    bytes += segment.bytes(columns);
  }
  const Argument w(op, "weight", weight);
  w.dtype(ScalarType::Byte).shape("[bytes of the layout]", {bytes}).contiguous();
  packed.data = static_cast<const uint8_t*>(weight.data_ptr());
  return packed;
}

QuantizedCall quantized_call(const LinearInputs& arguments, const std::string& layout) {
  const Argument input(arguments.op, "x", arguments.x);
  LinearParams p = params_of(input, arguments.x);
  Argument(arguments.op, "weight", arguments.weight).same_device_as(input);
  QuantizedCall call{packed_weight(arguments.op, arguments.weight, layout, p.K), {}};
  p.N = call.weight.rows;
  p.weight = call.weight.data;
  call.linear = product_call(arguments, p);
  return call;
}

std::vector<Choice> packed_choices(int device, const LinearParams& p, const std::vector<Segment>& segments) {
  std::vector<Choice> choices;
  size_t largest = 0;
  for (const Segment& segment : segments) {
    if (segment.bytes(p.K) > segments[largest].bytes(p.K)) largest = choices.size();
    choices.push_back(choose_linear(device, p.dtype, segment.rows, p.K, p.M, static_cast<int>(segment.format)));
  }
  const Choice wanted = choices[largest];
  for (Choice& choice : choices) {
    if ((choice.impl == Impl::aten) != (wanted.impl == Impl::aten)) choice = {wanted.impl, -1, wanted.source};
  }
  return choices;
}

DequantizeCall dequantize_call(const Tensor& weight, const std::string& layout, int64_t columns, const Tensor& rows,
                               ScalarType dtype) {
  constexpr const char* kOp = "dequantize_rows";
  const Argument numbers(kOp, "rows", rows);
  Argument(kOp, "weight", weight).same_device_as(numbers);
  numbers.dtype(ScalarType::Long);
  DequantizeCall call{packed_weight(kOp, weight, layout, columns), {}, torch::stable::contiguous(rows), {}};
  DequantizeParams& p = call.params;
  switch (dtype) {
    case ScalarType::Float: p.dtype = DType::f32; break;
    case ScalarType::BFloat16: p.dtype = DType::bf16; break;
    case ScalarType::Half: p.dtype = DType::f16; break;
    default: fail(kOp, std::string("dtype must be float32, bfloat16 or float16; got ") + type_name(dtype));
  }
  std::vector<int64_t> sizes(rows.sizes().begin(), rows.sizes().end());
  sizes.push_back(columns);
  call.out = torch::stable::new_empty(weight, sizes, dtype);
  p.K = columns;
  p.count = rows.numel();
  p.total_rows = call.weight.rows;
  p.weight = call.weight.data;
  p.rows = static_cast<const int64_t*>(call.rows.data_ptr());
  p.out = call.out.data_ptr();
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
