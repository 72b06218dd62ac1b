// The schemas of torch.ops.fdpp.*: one schema, an implementation per backend. fdpp/ops.py documents them.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fdpp, m) {
  m.def(
      "decode_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor cache_seqlens, Tensor? block_table=None, *, "
      "float? softmax_scale=None, Tensor? phi=None, int window=-1, float softcap=0.0, Tensor? alibi_slopes=None, "
      "Tensor? sinks=None, int num_splits=0, Tensor(a!)? rereference_count=None) -> Tensor");
  m.def("gemv(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor");
  m.def("flat_gemm(Tensor x, Tensor weight, Tensor? bias=None, *, int config=-1) -> Tensor");
  m.def("linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor");
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def("add_rms_norm(Tensor x, Tensor(a!) residual, Tensor weight, float eps) -> Tensor");
  m.def(
      "rope_append(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor positions, Tensor(a!) k_cache, "
      "Tensor(b!) v_cache, Tensor? block_table=None, *, bool interleaved=False) -> Tensor");
  m.def("silu_mul(Tensor gate_up) -> Tensor");
}
