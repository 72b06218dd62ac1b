// Norms, silu_mul and rope_append of the CPU: checked positions and pages, threads.
#include "torch/arguments/fused.h"
#include "cpu/backend.h"
#include "cpu/cpu_features.h"
#include "torch/arguments/cache.h"
#include "torch/cpu/cpu_threads.h"

namespace fdpp {

namespace {

Tensor run_norm(const NormInputs& inputs) {
  const NormCall call = norm_call(inputs);
  cpu::norm(cpu::kernels(), call.params, recorded_or_torch_threads({{call.params.x, inputs.x.data_ptr()}}));
  return call.out;
}
using CpuNorms = Norms<run_norm>;

Tensor silu_mul_cpu(const Tensor& gate_up) {
  const SiluMulCall call = silu_mul_call(gate_up);
  cpu::silu_mul(cpu::kernels(), call.params, recorded_or_torch_threads({{call.params.gate_up, gate_up.data_ptr()}}));
  return call.out;
}

void check_positions(const RopeCall& call, int64_t max_position) {
  const RopeParams& p = call.params;
  for (int b = 0; b < p.batch; ++b) {
    for (int s = 0; s < p.query_len; ++s) {
      const int64_t position = p.positions[b * p.positions_stride + s];
      if (position >= p.position_limit) {
        fail(kRopeAppend, "positions[" + std::to_string(b) + ", " + std::to_string(s) + "] must be below " +
                              std::to_string(p.position_limit) + ", the smaller of the rows of cos, " +
                              std::to_string(max_position) + ", and " + describe_capacity(p.layout, call.capacity) +
                              "; got " + std::to_string(position));
      }
      if (position >= 0) check_page(kRopeAppend, p.layout, b, position / p.layout.page_size);
    }
  }
}

Tensor rope_append_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin,
                       const Tensor& positions, const Tensor& k_cache, const Tensor& v_cache,
                       const OptionalTensor& block_table, bool interleaved) {
  const RopeCall call = rope_call({q, k, v, cos, sin, positions, k_cache, v_cache, block_table, interleaved});
  const cpu::Threads threads = recorded_or_torch_threads();
  if (threads.recording == nullptr) check_positions(call, cos.size(0));  // those of a replay are not known yet
  cpu::rope_append(cpu::kernels(), call.params, threads);
  return call.out;
}

STABLE_TORCH_LIBRARY_IMPL(fdpp, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&CpuNorms::rms_norm));
  m.impl("add_rms_norm", TORCH_BOX(&CpuNorms::add_rms_norm));
  m.impl("layer_norm", TORCH_BOX(&CpuNorms::layer_norm));
  m.impl("add_layer_norm", TORCH_BOX(&CpuNorms::add_layer_norm));
  m.impl("silu_mul", TORCH_BOX(&silu_mul_cpu));
  m.impl("rope_append", TORCH_BOX(&rope_append_cpu));
}

}  // namespace

}  // namespace fdpp
