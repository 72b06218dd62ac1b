// A call of the GPU attention kernel up to its launch, for the GPU libraries and for the host that executes their kernels.
#pragma once

#include "torch/shared/attention_arguments.h"

namespace fdpp {

// What the number of splits is planned for.
struct SplitBudget {
  int workers;   // blocks that run at a time
  int min_keys;  // below this a split costs more than it brings
};

// The parameters and the tensors that they point into. `partial` and `arrivals` are there when there is more than one split;
// the caller zeroes `arrivals`.
struct GpuAttention {
  AttentionParams params;
  Tensor out;
  OptionalTensor partial, arrivals;
};

// Checks on top of those of every backend: float16 or bfloat16, rows aligned for 16-byte loads.
AttentionParams gpu_attention_params(const AttentionArguments& arguments);

// Plans the splits where the caller left them open, from the capacity and never from the lengths: those stay on the device,
// and a captured graph stays valid while they grow.
GpuAttention plan_gpu_attention(const AttentionArguments& arguments, const AttentionParams& params, SplitBudget budget);

}  // namespace fdpp
