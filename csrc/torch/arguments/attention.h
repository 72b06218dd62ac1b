// The arguments of decode_attention, as every backend takes them: checked, and turned into AttentionParams.
#pragma once

#include "torch/arguments/checks.h"

namespace fdpp {

struct AttentionArguments {
  const Tensor& q;
  const Tensor& k_cache;
  const Tensor& v_cache;
  const Tensor& cache_seqlens;
  const OptionalTensor& block_table;
  std::optional<double> softmax_scale;
  const OptionalTensor& phi;
  int64_t window;
  double softcap;
  const OptionalTensor& alibi_slopes;
  const OptionalTensor& sinks;
  int64_t num_splits;
  OptionalTensor rereference_count;
};

constexpr const char* kDecodeAttention = "decode_attention";

// Everything but the output, the scratch and a planned number of splits. Reads no element of a tensor.
AttentionParams attention_params(const AttentionArguments& arguments);

// The operator as torch calls it, for a backend that takes the arguments as a struct: without and with a count.
using Attention = Tensor (*)(const AttentionArguments&);

template <Attention kBackend>
Tensor decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& cache_seqlens,
                        const OptionalTensor& block_table, std::optional<double> softmax_scale,
                        const OptionalTensor& phi, int64_t window, double softcap, const OptionalTensor& alibi_slopes,
                        const OptionalTensor& sinks, int64_t num_splits) {
  return kBackend({q, k_cache, v_cache, cache_seqlens, block_table, softmax_scale, phi, window, softcap, alibi_slopes,
                   sinks, num_splits, std::nullopt});
}

template <Attention kBackend>
Tensor decode_attention_counted(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                const Tensor& cache_seqlens, const OptionalTensor& block_table,
                                std::optional<double> softmax_scale, const OptionalTensor& phi, int64_t window,
                                double softcap, const OptionalTensor& alibi_slopes, const OptionalTensor& sinks,
                                int64_t num_splits, const Tensor& rereference_count) {
  OptionalTensor count;
  if (rereference_count.defined()) count = rereference_count;  // a None that was spelled out chooses this overload, too
  return kBackend({q, k_cache, v_cache, cache_seqlens, block_table, softmax_scale, phi, window, softcap, alibi_slopes,
                   sinks, num_splits, count});
}

template <Attention kBackend, typename Library>
void implement_decode_attention(Library& m) {
  m.impl("decode_attention", TORCH_BOX(&decode_attention<kBackend>));
  m.impl("decode_attention.counted", TORCH_BOX(&decode_attention_counted<kBackend>));
}

}  // namespace fdpp
