// The arguments of norms, silu_mul and rope_append, as every backend takes them: checked, and turned
// into parameters. No element of a tensor is read.
#pragma once

#include "torch/arguments/checks.h"

namespace fdpp {

struct NormInputs {
  const char* op;
  const Tensor& x;
  const Tensor* residual;  // null: nothing is added
  const Tensor& weight;
  const OptionalTensor& bias;
  double eps;
  bool centered;
};

// The parameters, the result, and the tensor that the parameters may point into instead of the argument.
struct NormCall {
  NormParams params;
  Tensor x, out;
};
NormCall norm_call(const NormInputs& inputs);

// The four operators that are a norm, over a function from NormInputs to the result.
template <Tensor (*run)(const NormInputs&)>
struct Norms {
  static Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
    return run({"rms_norm", x, nullptr, weight, std::nullopt, eps, false});
  }
  static Tensor add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps) {
    return run({"add_rms_norm", x, &residual, weight, std::nullopt, eps, false});
  }
  static Tensor layer_norm(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, double eps) {
    return run({"layer_norm", x, nullptr, weight, bias, eps, true});
  }
  static Tensor add_layer_norm(const Tensor& x, const Tensor& residual, const Tensor& weight,
                               const OptionalTensor& bias, double eps) {
    return run({"add_layer_norm", x, &residual, weight, bias, eps, true});
  }
};

struct SiluMulCall {
  SiluMulParams params;
  Tensor gate_up, out;
};
SiluMulCall silu_mul_call(const Tensor& gate_up);

struct RopeArguments {
  const Tensor &q, &k, &v, &cos, &sin, &positions, &k_cache, &v_cache;
  const OptionalTensor& block_table;
  bool interleaved;
};
constexpr const char* kRopeAppend = "rope_append";

struct RopeCall {
  RopeParams params;
  Tensor out;
  int64_t capacity;  // of a sequence's cache
};
RopeCall rope_call(const RopeArguments& arguments);

}  // namespace fdpp
