// torch.ops.fdpp.*: one schema, an implementation per backend.
#include <torch/csrc/stable/library.h>

#include "torch/shared/schemas.h"

STABLE_TORCH_LIBRARY(fdpp, m) {
  m.def(fdpp::schemas::kDecodeAttention);
  m.def(fdpp::schemas::kGemv);
  m.def(fdpp::schemas::kFlatGemm);
  m.def(fdpp::schemas::kLinear);
  m.def(fdpp::schemas::kRmsNorm);
  m.def(fdpp::schemas::kAddRmsNorm);
  m.def(fdpp::schemas::kRopeAppend);
  m.def(fdpp::schemas::kSiluMul);
}
