#include "torch/arguments/fused.h"

#include <algorithm>
#include <utility>

#include "torch/arguments/cache.h"

namespace fdpp {

namespace {

// The same elements in the same places, of which each is read before it is written.
bool is_same_view(const Tensor& a, const Tensor& b) {
  return a.data_ptr() == b.data_ptr() && a.scalar_type() == b.scalar_type() && a.is_contiguous() && b.is_contiguous();
}

void copy_outer_strides(int64_t (&to)[3], const Tensor& from) {
  for (int d = 0; d < 3; ++d) to[d] = from.stride(d);
}

}  // namespace

NormCall norm_call(const NormInputs& inputs) {
  const auto& [op, x, residual, weight, bias, eps, centered] = inputs;
  const Argument input(op, "x", x);
  NormParams p{};
  p.dtype = input.floating();
  input.last_dim_contiguous();
  p.width = x.size(x.dim() - 1);
  Argument(op, "weight", weight).same_device_as(input).same_dtype_as(input).shape("[H]", {p.width}).contiguous();
  if (bias.has_value()) {
    Argument(op, "bias", *bias).same_device_as(input).same_dtype_as(input).shape("[H]", {p.width}).contiguous();
    p.bias = bias->data_ptr();
  }
  if (residual != nullptr) {
    const Argument sum(op, "residual", *residual);
    p.residual_dtype = sum.floating();
    if (p.residual_dtype != p.dtype && p.residual_dtype != DType::f32) sum.fail("be float32 or have the dtype of x");
    sum.same_device_as(input).contiguous();
    const auto expected = x.sizes(), sizes = residual->sizes();
    if (!std::equal(expected.begin(), expected.end(), sizes.begin(), sizes.end())) {
      sum.fail("have the shape of x, " + describe(x));
    }
    const Written written[]{{op, "residual", *residual}};
    Argument(op, "weight", weight).apart_from(written);
    if (bias.has_value()) Argument(op, "bias", *bias).apart_from(written);
    if (!is_same_view(x, *residual)) input.apart_from(written);
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
  p.centered = centered;
  const Tensor out = empty_with_last(x, p.width);
  p.out = out.data_ptr();
  if (residual != nullptr) Argument(op, "residual", *residual).mark_written();
  return {p, rows.tensor, out};
}

SiluMulCall silu_mul_call(const Tensor& gate_up) {
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
  return {p, rows.tensor, out};
}

RopeCall rope_call(const RopeArguments& arguments) {
  const auto& [q, k, v, cos, sin, positions, k_cache, v_cache, block_table, interleaved] = arguments;
  constexpr const char* kOp = kRopeAppend;
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
    Argument(kOp, name, tensor)
        .same_device_as(query)
        .same_dtype_as(query)
        .shape("[B, Sq, Hkv, D]", {p.batch, p.query_len, p.kv_heads, p.head_dim})
        .last_dim_contiguous();
  };
  check_new("k", k);
  check_new("v", v);
  const Argument cosines(kOp, "cos", cos);
  cosines.same_device_as(query)
      .dtype(ScalarType::Float)
      .shape("[max_position, rot / 2]", {kAnySize, kAnySize})
      .contiguous();
  if (2 * cos.size(1) > p.head_dim)
    cosines.fail("have at most head_dim / 2 columns, " + std::to_string(p.head_dim / 2));
  const int64_t max_position = cos.size(0);
  Argument(kOp, "sin", sin)
      .same_device_as(query)
      .dtype(ScalarType::Float)
      .shape("[max_position, rot / 2]", {max_position, cos.size(1)})
      .contiguous();
  p.rotated_dim = static_cast<int>(2 * cos.size(1));
  Argument(kOp, "positions", positions)
      .same_device_as(query)
      .dtype(ScalarType::Int)
      .shape("[B, Sq]", {p.batch, p.query_len})
      .last_dim_contiguous();
  const Written written[]{{kOp, "k_cache", k_cache}, {kOp, "v_cache", v_cache}};
  Argument(kOp, "v_cache", v_cache).apart_from({written, 1});
  const std::pair<const char*, const Tensor&> read[]{{"q", q},     {"k", k},     {"v", v},
                                                     {"cos", cos}, {"sin", sin}, {"positions", positions}};
  for (const auto& [name, tensor] : read) Argument(kOp, name, tensor).apart_from(written);
  if (block_table.has_value()) Argument(kOp, "block_table", *block_table).apart_from(written);
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
  p.position_limit = std::min(max_position, cache.capacity);
  const Tensor out = empty_like_device(q, {p.batch, p.query_len, p.query_heads, p.head_dim});
  p.out = out.data_ptr();
  Argument(kOp, "k_cache", k_cache).mark_written();
  Argument(kOp, "v_cache", v_cache).mark_written();
  return {p, out, cache.capacity};
}

}  // namespace fdpp
