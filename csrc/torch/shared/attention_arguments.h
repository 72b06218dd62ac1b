// The arguments of decode_attention, as every backend takes them: checked, and turned into AttentionParams.
#pragma once

#include "torch/shared/checks.h"

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
  const OptionalTensor& rereference_count;
};

constexpr const char* kDecodeAttention = "decode_attention";

// Everything but the output, the scratch and a planned number of splits. Reads no element of a tensor.
AttentionParams attention_params(const AttentionArguments& arguments);

// The operator as torch calls it, for a backend that takes the arguments as a struct.
template <Tensor (*kBackend)(const AttentionArguments&)>
Tensor decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& cache_seqlens,
                        const OptionalTensor& block_table, std::optional<double> softmax_scale,
                        const OptionalTensor& phi, int64_t window, double softcap, const OptionalTensor& alibi_slopes,
                        const OptionalTensor& sinks, int64_t num_splits, const OptionalTensor& rereference_count) {
  return kBackend({q, k_cache, v_cache, cache_seqlens, block_table, softmax_scale, phi, window, softcap, alibi_slopes,
                   sinks, num_splits, rereference_count});
}

}  // namespace fdpp
