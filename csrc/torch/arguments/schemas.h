// The schemas of the operators, one text for every namespace that registers them. fdpp/ops.py documents them.
//
// decode_attention has two, with and without the count that it writes: torch.compile's default compiler and vmap cannot
// take an optional argument that is written.
#pragma once

namespace fdpp::schemas {

constexpr const char* kDecodeAttention =
    "decode_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor cache_seqlens, Tensor? block_table=None, *, "
    "float? softmax_scale=None, Tensor? phi=None, int window=-1, float softcap=0.0, Tensor? alibi_slopes=None, "
    "Tensor? sinks=None, int num_splits=0) -> Tensor";
constexpr const char* kDecodeAttentionCounted =
    "decode_attention.counted(Tensor q, Tensor k_cache, Tensor v_cache, Tensor cache_seqlens, "
    "Tensor? block_table=None, *, float? softmax_scale=None, Tensor? phi=None, int window=-1, float softcap=0.0, "
    "Tensor? alibi_slopes=None, Tensor? sinks=None, int num_splits=0, Tensor(a!) rereference_count) -> Tensor";
constexpr const char* kGemv =
    "gemv(Tensor x, Tensor weight, Tensor? bias=None, *, Tensor? residual=None, bool gated=False, "
    "str? activation=None) -> Tensor";
constexpr const char* kFlatGemm =
    "flat_gemm(Tensor x, Tensor weight, Tensor? bias=None, *, int config=-1, Tensor? residual=None, bool gated=False, "
    "str? activation=None) -> Tensor";
constexpr const char* kLinear =
    "linear(Tensor x, Tensor weight, Tensor? bias=None, *, Tensor? residual=None, bool gated=False, "
    "str? activation=None) -> Tensor";
constexpr const char* kQuantizedLinear =
    "quantized_linear(Tensor x, Tensor weight, str layout, Tensor? bias=None, *, Tensor? residual=None, "
    "bool gated=False, str? activation=None) -> Tensor";
constexpr const char* kDequantizeRows =
    "dequantize_rows(Tensor weight, str layout, int columns, Tensor rows, *, ScalarType dtype=float) -> Tensor";
constexpr const char* kRmsNorm = "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor";
constexpr const char* kAddRmsNorm = "add_rms_norm(Tensor x, Tensor(a!) residual, Tensor weight, float eps) -> Tensor";
constexpr const char* kLayerNorm = "layer_norm(Tensor x, Tensor weight, Tensor? bias, float eps) -> Tensor";
constexpr const char* kAddLayerNorm =
    "add_layer_norm(Tensor x, Tensor(a!) residual, Tensor weight, Tensor? bias, float eps) -> Tensor";
constexpr const char* kRopeAppend =
    "rope_append(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor positions, Tensor(a!) k_cache, "
    "Tensor(b!) v_cache, Tensor? block_table=None, *, bool interleaved=False) -> Tensor";
constexpr const char* kSiluMul = "silu_mul(Tensor gate_up) -> Tensor";

// All of them, for the library of a namespace.
template <typename Library>
void define(Library& m) {
  for (const char* schema :
       {kDecodeAttention, kDecodeAttentionCounted, kGemv, kFlatGemm, kLinear, kQuantizedLinear, kDequantizeRows,
        kRmsNorm, kAddRmsNorm, kLayerNorm, kAddLayerNorm, kRopeAppend, kSiluMul}) {
    m.def(schema);
  }
}

}  // namespace fdpp::schemas
