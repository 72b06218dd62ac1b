// The operators of the CPU backend: kernels over threads. Parameters were checked by the caller.
#pragma once

#include <vector>

#include "common/dataflow.h"
#include "common/params.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace fdpp::cpu {

// Splits for a call whose longest sequence has max_keys keys.
int plan_attention_splits(const AttentionParams& params, int64_t max_keys, const Threads& threads);
void decode_attention(const Kernels& kernels, const AttentionParams& params, const Threads& threads);
// For sequences that have other lengths at each replay. With `plans`, num_splits is the most splits of a call.
void record_attention(const Kernels& kernels, const AttentionParams& params, bool plans, const Threads& threads);

// gemv with kGemv as the config, otherwise flat_gemm; then the epilogue, or null. The caller allocates params.packed_x
// with packed_x_bytes(params, config).
void linear(const Kernels& kernels, const LinearParams& params, int config, const EpilogueParams* epilogue,
            const Threads& threads);
// The configuration for shapes that no table names.
int default_flat_gemm_config(const Kernels& kernels, const LinearParams& params);
// What is left to do with the product of another implementation.
void linear_epilogue(const Kernels& kernels, const EpilogueParams& params, const Threads& threads);

// The product of packed_x_bytes = quantized_x_bytes(params) and a packed weight, by gemv or flat_gemm, as `choices` has
// it for each segment; then the epilogue, or null.
int64_t quantized_x_bytes(const LinearParams& params);
void quantized_linear(const Kernels& kernels, const LinearParams& params, const std::vector<Segment>& segments,
                      const std::vector<Choice>& choices, const EpilogueParams* epilogue, const Threads& threads);
void dequantize_rows(const DequantizeParams& params, const std::vector<Segment>& segments, const Threads& threads);

void norm(const Kernels& kernels, const NormParams& params, const Threads& threads);
void argmax(const Kernels& kernels, const ArgmaxParams& params, const Threads& threads);
void silu_mul(const Kernels& kernels, const SiluMulParams& params, const Threads& threads);
void rope_append(const Kernels& kernels, const RopeParams& params, const Threads& threads);

// Bytes per second at which the threads together read a buffer of `bytes` bytes, best of `repeats` passes.
double measure_read_bandwidth(const Kernels& kernels, int64_t bytes, int repeats, const Threads& threads);

}  // namespace fdpp::cpu
