// torch.ops.fdpp.*: one schema, an implementation per backend.
#include <torch/csrc/stable/library.h>

#include "torch/arguments/schemas.h"

STABLE_TORCH_LIBRARY(fdpp, m) { fdpp::schemas::define(m); }
