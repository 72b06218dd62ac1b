// rms_norm, add_rms_norm, silu_mul and rope_append: tensors -> parameters -> a backend.
#include <algorithm>

#include "cpu/backend.h"
#include "cpu/cpu_features.h"
#include "torch/shared/cache_checks.h"
#include "torch/shared/checks.h"
#include "torch/core/cpu_threads.h"

namespace fdpp {

namespace {

Tensor norm_cpu(const char* op, const Tensor& x, const Tensor* residual, const Tensor& weight, double eps) {
  const Argument input(op, "x", x);
  NormParams p{};
  p.dtype = input.floating();
  input.last_dim_contiguous();
  p.width = x.size(x.dim() - 1);
  Argument(op, "weight", weight).same_device_as(input).same_dtype_as(input).shape("[H]", {p.width}).contiguous();
  if (residual != nullptr) {
    const Argument sum(op, "residual", *residual);
    p.residual_dtype = sum.floating();
    if (p.residual_dtype != p.dtype && p.residual_dtype != DType::f32) sum.fail("be float32 or have the dtype of x");
    sum.same_device_as(input).contiguous();
    const auto expected = x.sizes(), sizes = residual->sizes();
    if (!std::equal(expected.begin(), expected.end(), sizes.begin(), sizes.end())) {
      sum.fail("have the shape of x, " + describe(x));
    }
    p.residual = residual->data_ptr();
  }
  const Rows rows = rows_of(x);
  p.rows = rows.count;
  p.inner = rows.inner;
  p.outer_stride = rows.outer_stride;
  p.inner_stride = rows.inner_stride;
  p.x = rows.tensor.data_ptr();
  p.weight = weight.data_ptr();
  p.eps = static_cast<float>(eps);
  const Tensor out = empty_with_last(x, p.width);
  p.out = out.data_ptr();
  cpu::rms_norm(cpu::kernels(), p, torch_threads());
  return out;
}

Tensor rms_norm_cpu(const Tensor& x, const Tensor& weight, double eps) {
  return norm_cpu("rms_norm", x, nullptr, weight, eps);
}

Tensor add_rms_norm_cpu(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps) {
  return norm_cpu("add_rms_norm", x, &residual, weight, eps);
}

Tensor silu_mul_cpu(const Tensor& gate_up) {
  const Argument input("silu_mul", "gate_up", gate_up);
  SiluMulParams p{};
  p.dtype = input.floating();
  input.last_dim_contiguous();
  const int64_t both = gate_up.size(gate_up.dim() - 1);
  if (both % 2 != 0) input.fail("have an even last dimension (gate and up)");
  p.width = both / 2;
  const Rows rows = rows_of(gate_up);
  p.rows = rows.count;
  p.inner = rows.inner;
  p.outer_stride = rows.outer_stride;
  p.inner_stride = rows.inner_stride;
  p.gate_up = rows.tensor.data_ptr();
  const Tensor out = empty_with_last(gate_up, p.width);
  p.out = out.data_ptr();
  cpu::silu_mul(cpu::kernels(), p, torch_threads());
  return out;
}

void copy_outer_strides(int64_t (&to)[3], const Tensor& from) {
  for (int d = 0; d < 3; ++d) to[d] = from.stride(d);
}

Tensor rope_append_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin,
                       const Tensor& positions, const Tensor& k_cache, const Tensor& v_cache,
                       const OptionalTensor& block_table, bool interleaved) {
  constexpr const char* kOp = "rope_append";
  const Argument query(kOp, "q", q);
  RopeParams p{};
  p.dtype = query.floating();
  query.shape("[B, Sq, Hq, D]", {kAnySize, kAnySize, kAnySize, kAnySize}).last_dim_contiguous();
  p.batch = checked_int(kOp, "the batch", q.size(0));
  p.query_len = checked_int(kOp, "Sq", q.size(1));
  p.query_heads = checked_int(kOp, "the number of query heads", q.size(2));
  p.head_dim = checked_int(kOp, "head_dim", q.size(3));
  const Cache cache = cache_of(kOp, query, p.batch, p.head_dim, k_cache, v_cache, block_table);
  p.kv_heads = cache.kv_heads;
  p.layout = cache.layout;
  p.k_cache = cache.k;
  p.v_cache = cache.v;
  const auto check_new = [&](const char* name, const Tensor& tensor) {
    Argument(kOp, name, tensor).same_device_as(query).same_dtype_as(query)
        .shape("[B, Sq, Hkv, D]", {p.batch, p.query_len, p.kv_heads, p.head_dim}).last_dim_contiguous();
  };
  check_new("k", k);
  check_new("v", v);
  const Argument cosines(kOp, "cos", cos);
  cosines.same_device_as(query).dtype(ScalarType::Float).shape("[max_position, rot / 2]", {kAnySize, kAnySize})
      .contiguous();
  if (2 * cos.size(1) > p.head_dim) cosines.fail("have at most head_dim / 2 columns, " + std::to_string(p.head_dim / 2));
  const int64_t max_position = cos.size(0);
  Argument(kOp, "sin", sin).same_device_as(query).dtype(ScalarType::Float)
      .shape("[max_position, rot / 2]", {max_position, cos.size(1)}).contiguous();
  p.rotated_dim = static_cast<int>(2 * cos.size(1));
  Argument(kOp, "positions", positions).same_device_as(query).dtype(ScalarType::Int)
      .shape("[B, Sq]", {p.batch, p.query_len}).last_dim_contiguous().apart_from("k_cache", k_cache)
      .apart_from("v_cache", v_cache);
  Argument(kOp, "v_cache", v_cache).apart_from("k_cache", k_cache);
  if (block_table.has_value()) {
    Argument(kOp, "block_table", *block_table).apart_from("k_cache", k_cache).apart_from("v_cache", v_cache);
  }
  p.q = q.data_ptr();
  p.k = k.data_ptr();
  p.v = v.data_ptr();
  copy_outer_strides(p.q_strides, q);
  copy_outer_strides(p.k_strides, k);
  copy_outer_strides(p.v_strides, v);
  p.cos = static_cast<const float*>(cos.data_ptr());
  p.sin = static_cast<const float*>(sin.data_ptr());
  p.positions = static_cast<const int32_t*>(positions.data_ptr());
  p.positions_stride = positions.stride(0);
  p.interleaved = interleaved;
  const int64_t limit = std::min(max_position, cache.capacity);
  for (int b = 0; b < p.batch; ++b) {
    for (int s = 0; s < p.query_len; ++s) {
      const int64_t position = p.positions[b * p.positions_stride + s];
      if (position >= limit) {
        fail(kOp, "positions[" + std::to_string(b) + ", " + std::to_string(s) + "] must be below " +
                      std::to_string(limit) + " (rows of cos: " + std::to_string(max_position) +
                      ", capacity of the cache: " + std::to_string(cache.capacity) + "); got " +
                      std::to_string(position));
      }
      if (position >= 0) check_page(kOp, p.layout, b, position / p.layout.page_size);
    }
  }
  const Tensor out = empty_like_device(q, {p.batch, p.query_len, p.query_heads, p.head_dim});
  p.out = out.data_ptr();
  cpu::rope_append(cpu::kernels(), p, torch_threads());
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fdpp, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&rms_norm_cpu));
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm_cpu));
  m.impl("silu_mul", TORCH_BOX(&silu_mul_cpu));
  m.impl("rope_append", TORCH_BOX(&rope_append_cpu));
}

}  // namespace

}  // namespace fdpp
