#include "torch/shared/gpu_attention.h"

#include <limits>

#include "common/gpu_launch.h"
#include "common/split_plan.h"

namespace fdpp {

AttentionParams gpu_attention_params(const AttentionArguments& arguments) {
  const AttentionParams p = attention_params(arguments);
  const Argument query(kDecodeAttention, "q", arguments.q), k(kDecodeAttention, "k_cache", arguments.k_cache),
      v(kDecodeAttention, "v_cache", arguments.v_cache);
  if (p.dtype == DType::f32) query.fail("be float16 or bfloat16 for the matrix units of a GPU");
  query.aligned();
  k.aligned();
  v.aligned();
  return p;
}

GpuAttention plan_gpu_attention(const AttentionArguments& arguments, const AttentionParams& params, SplitBudget budget) {
  const Tensor& q = arguments.q;
  GpuAttention call{params, empty_like_device(q, {params.batch, params.query_len, params.query_heads, params.head_dim}),
                    std::nullopt, std::nullopt};
  AttentionParams& p = call.params;
  p.out = call.out.data_ptr();
  const int64_t units = attention_units(p);
  if (p.num_splits == 0) p.num_splits = plan_splits(units, p.capacity, budget.workers, budget.min_keys);
  // The grid has one dimension of 31 bits.
  if (units * p.num_splits > std::numeric_limits<int>::max()) {
    fail(kDecodeAttention, "batch x kv heads x splits must be below 2^31; got " + std::to_string(units) + " x " +
                               std::to_string(p.num_splits));
  }
  if (p.num_splits > 1) {
    call.partial = empty_floats(q, attention_partial_floats(p));
    call.arrivals = empty_ints(q, units);
    p.partial = static_cast<float*>(call.partial->data_ptr());
    p.arrivals = static_cast<int32_t*>(call.arrivals->data_ptr());
  }
  return call;
}

}  // namespace fdpp
