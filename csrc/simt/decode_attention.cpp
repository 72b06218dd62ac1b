// Launches csrc/common/attention_kernel.h.
#include <stdexcept>

#include "common/attention_kernel.h"
#include "common/gpu_launch.h"
#include "simt/backend.h"
#include "simt/cdna.h"
#include "simt/nvidia.h"
#include "simt/rdna.h"

namespace fdpp::simt {

namespace {

template <typename P, typename T, int D>
void run(const AttentionParams& params, uint64_t seed) {
  using Attention = DecodeAttention<P, T, D>;
  const Grid grid{attention_units(params) * params.num_splits, Attention::kThreads, P::kWarpSize, Attention::kSharedBytes};
  launch(grid, seed, [](const void* p) { Attention::run(*static_cast<const AttentionParams*>(p)); }, &params);
}

template <typename P, typename T>
void run(const AttentionParams& params, uint64_t seed) {
  switch (params.head_dim) {
    case 64: return run<P, T, 64>(params, seed);
    case 80: return run<P, T, 80>(params, seed);
    case 96: return run<P, T, 96>(params, seed);
    case 128: return run<P, T, 128>(params, seed);
    case 192: return run<P, T, 192>(params, seed);
    case 256: return run<P, T, 256>(params, seed);
  }
  throw std::runtime_error("simt: no kernel for this head_dim");
}

template <typename P>
void run(const AttentionParams& params, uint64_t seed) {
  switch (params.dtype) {
    case DType::f16: return run<P, f16>(params, seed);
    case DType::bf16: return run<P, bf16>(params, seed);
    case DType::f32: break;
  }
  throw std::runtime_error("simt: no kernel for this dtype");
}

}  // namespace

void decode_attention(Machine machine, const AttentionParams& params, uint64_t seed) {
  switch (machine) {
    case Machine::nvidia: return run<Nvidia>(params, seed);
    case Machine::cdna: return run<Cdna>(params, seed);
    case Machine::rdna: return run<Rdna>(params, seed);
  }
}

}  // namespace fdpp::simt
