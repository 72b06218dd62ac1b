// The registration of a backend's operators, whose static functions have the names and arguments of the schemas.
#pragma once

#include <torch/csrc/stable/library.h>

#include "torch/arguments/attention.h"

namespace fdpp {

template <typename Operators, typename Library>
void implement(Library& m) {
  implement_decode_attention<Operators::attention>(m);
  m.impl("gemv", TORCH_BOX(&Operators::gemv));
  m.impl("flat_gemm", TORCH_BOX(&Operators::flat_gemm));
  m.impl("linear", TORCH_BOX(&Operators::linear));
  m.impl("quantized_linear", TORCH_BOX(&Operators::quantized_linear));
  m.impl("dequantize_rows", TORCH_BOX(&Operators::dequantize_rows));
  m.impl("rms_norm", TORCH_BOX(&Operators::rms_norm));
  m.impl("add_rms_norm", TORCH_BOX(&Operators::add_rms_norm));
  m.impl("layer_norm", TORCH_BOX(&Operators::layer_norm));
  m.impl("add_layer_norm", TORCH_BOX(&Operators::add_layer_norm));
  m.impl("silu_mul", TORCH_BOX(&Operators::silu_mul));
  m.impl("rope_append", TORCH_BOX(&Operators::rope_append));
}

}  // namespace fdpp
