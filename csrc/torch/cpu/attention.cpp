// decode_attention of the CPU: checked lengths and pages, scratch, threads.
#include <algorithm>

#include "cpu/backend.h"
#include "cpu/cpu_features.h"
#include "torch/arguments/attention.h"
#include "torch/arguments/cache.h"
#include "torch/cpu/cpu_threads.h"

namespace fdpp {

namespace {

Tensor run_cpu(const AttentionArguments& arguments) {
  AttentionParams p = attention_params(arguments);
  int64_t longest = 0;
  for (int b = 0; b < p.batch; ++b) {
    const int64_t length = p.cache_seqlens[b];
    if (length < 0 || length > p.capacity) {
      fail(kDecodeAttention, "cache_seqlens[" + std::to_string(b) + "] must be between 0 and " +
                                 describe_capacity(p.layout, p.capacity) + "; got " + std::to_string(length));
    }
    check_pages(kDecodeAttention, p.layout, b, length);
    longest = std::max(longest, length);
  }
  const Tensor out = empty_like_device(arguments.q, {p.batch, p.query_len, p.query_heads, p.head_dim});
  p.out = out.data_ptr();
  const cpu::Threads threads = torch_threads();
  if (p.num_splits == 0) p.num_splits = cpu::plan_attention_splits(p, longest, threads);
  const int64_t rows = int64_t{p.batch} * p.query_heads * p.query_len;
  const int64_t floats = rows * p.num_splits * attention_row_floats(p.head_dim);
  const Scratch partial = scratch(kDecodeAttention, floats * static_cast<int64_t>(sizeof(float)));
  p.partial = static_cast<float*>(partial.get());
  cpu::decode_attention(cpu::kernels(), p, threads);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fdpp, CPU, m) { implement_decode_attention<run_cpu>(m); }

}  // namespace

}  // namespace fdpp
