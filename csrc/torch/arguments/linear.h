// The arguments of gemv, flat_gemm and linear, as every backend takes them:
//
//   LinearInputs (the caller's tensors) -> LinearCall (checked, with the tensors that it points into) -> LinearParams
//   (what a launch takes, common/params.h)
#pragma once

#include "torch/arguments/checks.h"

namespace fdpp {

struct LinearInputs {
  const char* op;
  const Tensor& x;
  const Tensor& weight;
  const OptionalTensor& bias;
  const OptionalTensor& residual;
  bool gated;
  const OptionalString& activation;
};

// The parameters but for the result, and the tensors that they point into: x and the residual as rows with a single
// stride.
struct LinearCall {
  LinearParams params;
  Tensor x;
  OptionalTensor residual;
};
LinearCall linear_call(const LinearInputs& arguments);

// A tensor for the result; the parameters then point to it.
Tensor make_output(const LinearInputs& arguments, LinearCall& call);

// For implementations that know no epilogue: the parameters of the product alone, and what is left to do
// with it when has_epilogue().
LinearParams product_params(const LinearCall& call, const Tensor& product);
bool has_epilogue(const LinearParams& params);

// torch's own linear, ImplC; contiguous.
Tensor aten_linear(const LinearInputs& arguments);

void check_flat_config(const char* op, int64_t config, int configs);
void check_flat_rows(const char* op, int64_t M);

}  // namespace fdpp
