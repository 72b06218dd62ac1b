// The arguments of rms_norm, add_rms_norm, silu_mul and rope_append, as every backend takes them: checked, and turned
// into parameters. No element of a tensor is read.
#pragma once

#include "torch/arguments/checks.h"

namespace fdpp {

// The parameters, the result, and the tensor that the parameters may point into instead of the argument.
struct NormCall {
  NormParams params;
  Tensor x, out;
};
// `residual` is null for rms_norm.
NormCall norm_call(const char* op, const Tensor& x, const Tensor* residual, const Tensor& weight, double eps);

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
