#include "torch/arguments/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <utility>

#include "common/head_dims.h"
#include "common/split_plan.h"
#include "torch/arguments/cache.h"

namespace fdpp {

namespace {

constexpr const char* kOp = kDecodeAttention;
constexpr double kLargest = 1e30;  // of softmax_scale and softcap: their quotient, and either times log2(e), are finite

std::string text_of(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", x);
  return text;
}

const float* per_head(const char* name, const OptionalTensor& tensor, const Argument& q, int64_t heads) {
  if (!tensor.has_value()) return nullptr;
  Argument(kOp, name, *tensor).same_device_as(q).dtype(ScalarType::Float).shape("[Hq]", {heads}).contiguous();
  return static_cast<const float*>(tensor->data_ptr());
}

const Tensor* address(const OptionalTensor& tensor) { return tensor.has_value() ? &*tensor : nullptr; }

}  // namespace

AttentionParams attention_params(const AttentionArguments& arguments) {
  const auto& [q, k_cache, v_cache, cache_seqlens, block_table, softmax_scale, phi, window, softcap, alibi_slopes,
               sinks, num_splits, rereference_count] = arguments;
  const Argument query(kOp, "q", q);
  AttentionParams p{};
  p.dtype = query.floating();
  query.shape("[B, Sq, Hq, D]", {kAnySize, kAnySize, kAnySize, kAnySize}).last_dim_contiguous();
  p.batch = checked_int(kOp, "the batch", q.size(0));
  p.query_len = checked_int(kOp, "Sq", q.size(1));
  p.query_heads = checked_int(kOp, "the number of query heads", q.size(2));
  p.head_dim = checked_int(kOp, "head_dim", q.size(3));
  if (p.query_len < 1 || p.query_len > 16) query.fail("have 1 to 16 new tokens (Sq)");
  if (p.query_heads < 1) query.fail("have at least one head");
  const int d = p.head_dim;
  if (std::ranges::find(kHeadDims, d) == std::end(kHeadDims)) {
    std::string dims;
    for (const int dim : kHeadDims) dims += (dims.empty() ? "" : ", ") + std::to_string(dim);
    query.fail("have a head_dim that is one of " + dims);
  }
  const Cache cache = cache_of(kOp, query, p.batch, d, k_cache, v_cache, block_table);
  if (cache.kv_heads < 1 || p.query_heads % cache.kv_heads != 0) {
    query.fail("have a multiple of the cache's " + std::to_string(cache.kv_heads) + " kv heads (at least one)");
  }
  p.q = q.data_ptr();
  p.q_batch_stride = q.stride(0);
  p.q_token_stride = q.stride(1);
  p.q_head_stride = q.stride(2);
  p.k = cache.k;
  p.v = cache.v;
  p.layout = cache.layout;
  p.kv_heads = cache.kv_heads;
  Argument(kOp, "cache_seqlens", cache_seqlens)
      .same_device_as(query)
      .dtype(ScalarType::Int)
      .shape("[B]", {p.batch})
      .contiguous();
  p.cache_seqlens = static_cast<const int32_t*>(cache_seqlens.data_ptr());
  p.softmax_scale = static_cast<float>(softmax_scale.value_or(1.0 / std::sqrt(static_cast<double>(d))));
  if (!(std::fabs(p.softmax_scale) <= kLargest)) {
    fail(kOp, "softmax_scale must be between -1e30 and 1e30; got " + text_of(softmax_scale.value_or(0.0)));
  }
  if (window < -1) fail(kOp, "window must be -1 (no limit) or at least 0; got " + std::to_string(window));
  if (softcap != 0.0 && !(softcap >= 1e-6 && softcap <= kLargest)) {
    fail(kOp, "softcap must be 0 (none) or between 1e-6 and 1e30; got " + text_of(softcap));
  }
  if (num_splits < 0 || num_splits > kMaxSplits) {
    fail(kOp, "num_splits must be between 0 (planned) and " + std::to_string(kMaxSplits) + "; got " +
                  std::to_string(num_splits));
  }
  p.window = window;
  p.softcap = static_cast<float>(softcap);
  p.num_splits = static_cast<int>(num_splits);
  p.phi = per_head("phi", phi, query, p.query_heads);
  p.alibi_slopes = per_head("alibi_slopes", alibi_slopes, query, p.query_heads);
  p.sinks = per_head("sinks", sinks, query, p.query_heads);
  if (rereference_count.has_value()) {
    const Argument count(kOp, "rereference_count", *rereference_count);
    count.same_device_as(query).dtype(ScalarType::Long).shape("[Hq]", {p.query_heads}).contiguous();
    const Written written[]{{kOp, "rereference_count", *rereference_count}};
    const std::pair<const char*, const Tensor*> read[]{{"q", &q},
                                                       {"k_cache", &k_cache},
                                                       {"v_cache", &v_cache},
                                                       {"cache_seqlens", &cache_seqlens},
                                                       {"block_table", address(block_table)},
                                                       {"phi", address(phi)},
                                                       {"alibi_slopes", address(alibi_slopes)},
                                                       {"sinks", address(sinks)}};
    for (const auto& [name, tensor] : read) {
      if (tensor != nullptr) Argument(kOp, name, *tensor).apart_from(written);
    }
    count.mark_written();
    p.rereference_count = static_cast<int64_t*>(rereference_count->data_ptr());
  }
  p.capacity = cache.capacity;
  return p;
}

}  // namespace fdpp
