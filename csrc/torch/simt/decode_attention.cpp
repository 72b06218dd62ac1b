// decode_attention of the GPU kernels as the host executes them (csrc/simt), for tests: a namespace per kind of hardware,
// each with the schema of fdpp.
#include <algorithm>
#include <atomic>
#include <limits>

#include "simt/backend.h"
#include "torch/shared/gpu_attention.h"
#include "torch/shared/schemas.h"

namespace fdpp {

namespace {

// Short sequences are split, and for most numbers of units: the workers are prime.
constexpr SplitBudget kBudget{13, 32};

std::atomic<uint64_t> seed{0};

template <simt::Machine kMachine>
Tensor run_simt(const AttentionArguments& arguments) {
  const GpuAttention call = plan_gpu_attention(arguments, gpu_attention_params(arguments), kBudget);
  if (call.partial.has_value()) {
    // Scratch that is read before it was written shows in the result.
    std::fill_n(call.params.partial, call.partial->numel(), std::numeric_limits<float>::quiet_NaN());
    std::fill_n(call.params.arrivals, call.arrivals->numel(), 0);
  }
  if (call.params.batch > 0) simt::decode_attention(kMachine, call.params, seed.load());
  return call.out;
}

}  // namespace

}  // namespace fdpp

#define FDPP_SIMT_LIBRARY(machine)                                                                                \
  STABLE_TORCH_LIBRARY(fdpp_simt_##machine, m) { m.def(fdpp::schemas::kDecodeAttention); }                        \
  STABLE_TORCH_LIBRARY_IMPL(fdpp_simt_##machine, CPU, m) {                                                        \
    m.impl("decode_attention", TORCH_BOX(&fdpp::decode_attention<fdpp::run_simt<fdpp::simt::Machine::machine>>)); \
  }

FDPP_SIMT_LIBRARY(nvidia)
FDPP_SIMT_LIBRARY(cdna)
FDPP_SIMT_LIBRARY(rdna)

// The order in which later calls run the threads of a block.
extern "C" __attribute__((visibility("default"))) void fdpp_simt_set_seed(uint64_t value) { fdpp::seed = value; }
