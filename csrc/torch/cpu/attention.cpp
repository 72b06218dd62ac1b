// decode_attention of the CPU: checked lengths and pages, scratch, threads.
#include <algorithm>

#include "cpu/backend.h"
#include "cpu/cpu_features.h"
#include "torch/arguments/attention.h"
#include "torch/arguments/cache.h"
#include "torch/cpu/cpu_threads.h"

namespace fdpp {

namespace {

// The longest of the sequences, which are checked.
int64_t checked_longest(const AttentionParams& p) {
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
  return longest;
}

Tensor run_cpu(const AttentionArguments& arguments) {
  AttentionParams p = attention_params(arguments);
  const cpu::Threads threads = recorded_or_torch_threads();
  const bool is_recorded = threads.recording != nullptr, plans = p.num_splits == 0;
  // The sequences of a replay are not known yet: there is room for the longest ones.
  const int64_t longest = is_recorded ? p.capacity : checked_longest(p);
  const Tensor out = empty_like_device(arguments.q, {p.batch, p.query_len, p.query_heads, p.head_dim});
  p.out = out.data_ptr();
  if (plans) p.num_splits = cpu::plan_attention_splits(p, longest, threads);
  const int64_t rows = int64_t{p.batch} * p.query_heads * p.query_len;
  const int64_t floats = rows * p.num_splits * attention_row_floats(p.head_dim);
  Scratch partial = scratch(kDecodeAttention, floats * static_cast<int64_t>(sizeof(float)));
  p.partial = static_cast<float*>(partial.get());
  if (is_recorded) {
    cpu::record_attention(cpu::kernels(), p, plans, threads);
    keep(threads, std::move(partial));
  } else {
    cpu::decode_attention(cpu::kernels(), p, threads);
  }
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fdpp, CPU, m) { implement_decode_attention<run_cpu>(m); }

}  // namespace

}  // namespace fdpp
