// The arguments of gemv, flat_gemm and linear, as every backend takes them:
//
//   LinearInputs (the caller's tensors) -> LinearCall (checked, with the tensors that it points into) -> LinearParams
//   (what a launch takes, common/params.h)
#pragma once

#include <string>
#include <vector>

#include "common/dataflow.h"
#include "common/weight_format.h"
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

// A weight as uint8, of `columns` columns, with what its layout says of it (common/weight_format.h).
struct PackedWeight {
  std::vector<Segment> segments;
  int64_t rows = 0;
  const uint8_t* data = nullptr;
};
PackedWeight packed_weight(const char* op, const Tensor& weight, const std::string& layout, int64_t columns);

// linear_call() for a packed weight.
struct QuantizedCall {
  PackedWeight weight;
  LinearCall linear;
};
QuantizedCall quantized_call(const LinearInputs& arguments, const std::string& layout);

// What computes the rows of each segment: ImplC for all of them or for none, as the largest one wants it.
std::vector<Choice> packed_choices(int device, const LinearParams& params, const std::vector<Segment>& segments);

// Of dequantize_rows: int64 rows of any shape, and a result without values.
struct DequantizeCall {
  PackedWeight weight;
  DequantizeParams params;
  Tensor rows;
  Tensor out;
};
DequantizeCall dequantize_call(const Tensor& weight, const std::string& layout, int64_t columns, const Tensor& rows,
                               ScalarType dtype);

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
