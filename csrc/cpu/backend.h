// The operators of the CPU backend: kernels over threads. Parameters were checked by the caller.
#pragma once

#include "common/params.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace fdpp::cpu {

// Splits for a call whose longest sequence has max_keys keys.
int plan_attention_splits(const AttentionParams& params, int64_t max_keys, const Threads& threads);
void decode_attention(const Kernels& kernels, const AttentionParams& params, const Threads& threads);

// The caller allocates params.packed_x with packed_x_bytes(params, config). The config of gemv is kGemv.
void gemv(const Kernels& kernels, const LinearParams& params, const Threads& threads);
void flat_gemm(const Kernels& kernels, const LinearParams& params, int config, const Threads& threads);
// The configuration for shapes that no table names.
int default_flat_gemm_config(const Kernels& kernels, const LinearParams& params);
void linear_epilogue(const Kernels& kernels, const EpilogueParams& params, const Threads& threads);

void norm(const Kernels& kernels, const NormParams& params, const Threads& threads);
void silu_mul(const Kernels& kernels, const SiluMulParams& params, const Threads& threads);
void rope_append(const Kernels& kernels, const RopeParams& params, const Threads& threads);

// Bytes per second at which the threads together read a buffer of `bytes` bytes, best of `repeats` passes.
double measure_read_bandwidth(const Kernels& kernels, int64_t bytes, int repeats, const Threads& threads);

}  // namespace fdpp::cpu
