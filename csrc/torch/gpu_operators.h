// The operators of fdpp over the GPU kernels: tensors -> parameters -> launch. One source for the GPU libraries and for
// the simulation; they differ in the backend B, an object that lives for one call:
//
//   B(const char* op, const Tensor& x)                 makes the device of x current
//   int B::device(), B::multiprocessors()
//   double B::bandwidth()                              of memory, in bytes per second; 0: unknown
//   const LinearTiles& B::tiles()
//   int B::flat_tiles()                                how many of them fit
//   int B::resident_blocks(const Params&)              blocks of the kernel that run on a multiprocessor at a time
//   AttentionTiles B::attention_tiles(int head_dim, int tile)   0 warps where there is no such tile, or it does not fit
//   AttentionCosts B::attention_costs()
//   int32_t* B::arrivals(int64_t count)                zeroed counters
//   void B::prepare(Tensor& scratch)                   what it wants done with scratch before a launch
//   void B::run(const Params&)                         launches; throws what went wrong
#pragma once

#include "common/linear_choice.h"
#include "gpu/attention_block.h"
#include "gpu/attention_plan.h"
#include "gpu/flat_plan.h"
#include "gpu/gemv_plan.h"
#include "torch/arguments/attention.h"
#include "torch/arguments/fused.h"
#include "torch/arguments/implement.h"
#include "torch/arguments/linear.h"
#include "torch/gpu_quantized.h"

namespace fdpp {

// Checks on top of those of every backend.
inline void check_matrix_dtype(const char* op, const char* name, const Tensor& tensor) {
  const Argument argument(op, name, tensor);
  if (argument.floating() == DType::f32) argument.fail("be float16 or bfloat16 for the kernels of a GPU");
}

inline void check_gpu_attention(const AttentionArguments& arguments) {
  check_matrix_dtype(kDecodeAttention, "q", arguments.q);
  Argument(kDecodeAttention, "q", arguments.q).aligned();
  Argument(kDecodeAttention, "k_cache", arguments.k_cache).aligned();
  Argument(kDecodeAttention, "v_cache", arguments.v_cache).aligned();
}

template <typename B>
Tensor run_gpu_norm(const NormInputs& inputs) {
  const NormCall call = norm_call(inputs);
  check_matrix_dtype(inputs.op, "x", inputs.x);
  B(inputs.op, inputs.x).run(call.params);
  return call.out;
}

template <typename B>
struct GpuOperators : Norms<run_gpu_norm<B>>, GpuQuantized<B> {
  // Splits are planned from the capacity and never from the lengths: those stay on the device, and a captured graph
  // stays valid while they grow.
  static Tensor attention(const AttentionArguments& arguments) {
    AttentionParams p = attention_params(arguments);
    check_gpu_attention(arguments);
    B backend(kDecodeAttention, arguments.q);
    Tensor out = empty_like_device(arguments.q, {p.batch, p.query_len, p.query_heads, p.head_dim});
    p.out = out.data_ptr();
    const int64_t units = attention_units(p);
    if (p.num_splits == 0) plan(backend, units, p);
    check_blocks(kDecodeAttention, units * p.num_splits);
    OptionalTensor partial;
    if (p.num_splits > 1) {
      partial = empty_floats(arguments.q, attention_partial_floats(p));
      backend.prepare(*partial);
      p.partial = static_cast<float*>(partial->data_ptr());
      p.arrivals = backend.arrivals(units);
    }
    backend.run(p);
    return out;
  }

  static Tensor gemv(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& residual,
                     bool gated, const OptionalString& activation) {
    const LinearInputs arguments{"gemv", x, weight, bias, residual, gated, activation};
    LinearCall call = linear_call(arguments);
    B backend(arguments.op, x);
    return run_gemv(backend, arguments, call);
  }

  static Tensor flat_gemm(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t config,
                          const OptionalTensor& residual, bool gated, const OptionalString& activation) {
    const LinearInputs arguments{"flat_gemm", x, weight, bias, residual, gated, activation};
    LinearCall call = linear_call(arguments);
    B backend(arguments.op, x);
    check_flat_rows(arguments.op, call.params.M);
    check_flat_config(arguments.op, config, backend.flat_tiles() * kNumSpreads);
    return run_flat_gemm(backend, arguments, call, static_cast<int>(config));
  }

  static Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& residual, bool gated, const OptionalString& activation) {
    const LinearInputs arguments{"linear", x, weight, bias, residual, gated, activation};
    LinearCall call = linear_call(arguments);
    const LinearParams& p = call.params;
    B backend(arguments.op, x);
    const Choice choice = choose_linear(backend.device(), p.dtype, p.N, p.K, p.M);
    switch (choice.impl) {
      case Impl::gemv: return run_gemv(backend, arguments, call);
      case Impl::flat_gemm: return run_flat_gemm(backend, arguments, call, choice.config);
      case Impl::aten: break;
    }
    const Tensor product = aten_linear(arguments);
    if (!has_epilogue(p)) return product;
    Tensor out = make_output(arguments, call);
    check_matrix_dtype(arguments.op, "x", x);
    backend.run(EpilogueParams{call.params, product.data_ptr()});
    return out;
  }

  static Tensor silu_mul(const Tensor& gate_up) {
    const SiluMulCall call = silu_mul_call(gate_up);
    check_matrix_dtype("silu_mul", "gate_up", gate_up);
    B("silu_mul", gate_up).run(call.params);
    return call.out;
  }

  static Tensor rope_append(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin,
                            const Tensor& positions, const Tensor& k_cache, const Tensor& v_cache,
                            const OptionalTensor& block_table, bool interleaved) {
    const RopeCall call = rope_call({q, k, v, cos, sin, positions, k_cache, v_cache, block_table, interleaved});
    check_matrix_dtype(kRopeAppend, "q", q);
    B(kRopeAppend, q).run(call.params);
    return call.out;
  }

 private:
  static void plan(const B& backend, int64_t units, AttentionParams& p) {
    AttentionMachine machine{backend.multiprocessors(), backend.bandwidth(), {}, {}};
    for (p.tile = 0; p.tile < kAttentionTiles; ++p.tile) {
      machine.tiles[p.tile] = backend.attention_tiles(p.head_dim, p.tile);
      if (machine.tiles[p.tile].warps > 0) machine.resident[p.tile] = backend.resident_blocks(p);
    }
    const int64_t key_bytes = int64_t{2} * p.head_dim * size_of(p.dtype);
    const AttentionPlan plan = plan_attention(units, p.capacity, key_bytes, machine, backend.attention_costs());
    p.tile = plan.tile;
    p.num_splits = plan.num_splits;
  }

  static Tensor run_gemv(B& backend, const LinearInputs& arguments, LinearCall& call) {
    check_matrix_dtype(arguments.op, "x", arguments.x);
    Tensor out = make_output(arguments, call);
    GemvParams p{call.params, 0};
    if (p.linear.M == 0 || p.linear.N == 0) return out;
    const int64_t resident = int64_t{backend.multiprocessors()} * backend.resident_blocks(p);
    p.team_log2 = plan_gemv_team(p.linear.N, p.linear.K, p.linear.M, resident, backend.tiles());
    backend.run(p);
    return out;
  }

  static Tensor run_flat_gemm(B& backend, const LinearInputs& arguments, LinearCall& call, int config) {
    check_matrix_dtype(arguments.op, "x", arguments.x);
    Tensor out = make_output(arguments, call);
    const LinearParams& linear = call.params;
    if (linear.M == 0 || linear.N == 0) return out;
    FlatGemmParams p{};
    p.linear = linear;
    p.padded_m = is_batch_invariant() ? kBatchInvariantPaddedM : pad_m(linear.M, backend.tiles().least_padded_m);
    const FlatTile(&tiles)[kFlatTiles] = backend.tiles().of(p.padded_m);
    FlatMachine machine{backend.multiprocessors(), backend.bandwidth(), {}};
    for (p.tile = 0; p.tile < backend.flat_tiles(); ++p.tile) {
      if (config < 0 || p.tile == config / kNumSpreads) machine.resident[p.tile] = backend.resident_blocks(p);
    }
    if (config < 0) config = plan_flat_gemm(linear.N, linear.K, linear.M, p.padded_m, tiles, machine);
    p.tile = config / kNumSpreads;
    const FlatTile& tile = tiles[p.tile];
    const FlatWork work = flat_work(linear.N, linear.K, linear.M, p.padded_m, tile);
    const int64_t resident = int64_t{machine.multiprocessors} * machine.resident[p.tile];
    const int spread = kSpreads[config % kNumSpreads];
    p.blocks = tile.direct ? direct_blocks(linear.N, spread, resident) : flat_blocks(work, spread, resident);
    check_blocks(arguments.op, p.blocks);
    OptionalTensor partial;
    if (!tile.direct && shares_tiles(work, p.blocks)) {
      partial = empty_floats(arguments.x, flat_partial_floats(p.blocks, p.padded_m, tile));
      backend.prepare(*partial);
      p.partial = static_cast<float*>(partial->data_ptr());
      p.arrivals = backend.arrivals(work.tiles);
    }
    backend.run(p);
    return out;
  }
};

}  // namespace fdpp
