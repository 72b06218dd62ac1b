// The GPU kernels as the host executes them (csrc/simt), for tests: a namespace per kind of hardware, each with the
// schemas of fdpp.
#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <stdexcept>

#include "common/library.h"
#include "simt/backend.h"
#include "torch/arguments/schemas.h"
#include "torch/gpu_operators.h"

namespace fdpp {

namespace {

// A small device, whose prime number of multiprocessors divides nothing: short sequences are split, and work is shared.
constexpr int kMultiprocessors = 13;
constexpr int kSharedBytes = 227 * 1024;
constexpr double kBandwidth = 1.9e11, kMultiplies = 1.2e12;  // 13 of the 108 multiprocessors of an A100

std::atomic<uint64_t> seed{0};

template <simt::Machine kMachine>
class SimtBackend {
 public:
  SimtBackend(const char* op, const Tensor&) : op_(op) {}

  int device() const { return static_cast<int>(kMachine); }
  int multiprocessors() const { return kMultiprocessors; }
  double bandwidth() const { return kBandwidth; }
  const LinearTiles& tiles() const { return simt::linear_tiles(kMachine); }
  int flat_tiles() const { return tiles().fitting(kSharedBytes); }
  template <typename Params>
  int resident_blocks(const Params&) const {
    return 1;
  }
  AttentionTiles attention_tiles(int head_dim, int tile) const {
    return simt::attention_tiles(kMachine, head_dim, tile);
  }
  // Time passes with the keys alone, so that short sequences are split, too.
  AttentionCosts attention_costs() const { return {1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0}; }

  int32_t* arrivals(int64_t count) {
    count_ = count;
    arrivals_ = std::make_unique<int32_t[]>(count);
    return arrivals_.get();
  }

  // Scratch that is read before it was written shows in the result.
  void prepare(Tensor& scratch) const {
    std::fill_n(static_cast<float*>(scratch.data_ptr()), scratch.numel(), std::numeric_limits<float>::quiet_NaN());
  }

  template <typename Params>
  void run(const Params& params) const {
    simt::run(kMachine, params, seed.load());
    if (!std::all_of(arrivals_.get(), arrivals_.get() + count_, [](int32_t x) { return x == 0; })) {
      fail(op_, "simt: the kernel leaves counters that are not 0");
    }
  }

 private:
  const char* op_;
  std::unique_ptr<int32_t[]> arrivals_;
  int64_t count_ = 0;
};

simt::Machine machine(int device) {
  if (device < 0 || device >= 3)
    throw std::invalid_argument("the machines are devices 0 to 2; got " + std::to_string(device));
  return static_cast<simt::Machine>(device);
}

class SimtLibrary final : public Library {
 public:
  void set_seed(uint64_t value) const override { seed = value; }
};

const SimtLibrary library{};

}  // namespace

std::string linear_device(int device) {
  constexpr const char* kNames[] = {"simt:nvidia", "simt:cdna", "simt:rdna"};
  return kNames[static_cast<int>(machine(device))];
}

int flat_gemm_configs(int device, DType dtype, int format) {
  if (dtype == DType::f32) return 0;
  if (format != kPlain) return kNumSpreads;
  const int tiles = device == kAnyDevice ? kFlatTiles : simt::linear_tiles(machine(device)).fitting(kSharedBytes);
  return tiles * kNumSpreads;
}

bool has_gemv(int format) { return format == kPlain; }

Choice linear_rule(int device, DType dtype, int64_t, int64_t K, int64_t M, int format) {
  static_cast<void>(machine(device));
  return format == kPlain ? gpu_rule({kBandwidth, kMultiplies}, dtype, K, M) : packed_gpu_rule(dtype, M);
}

Choice batch_invariant_choice(int device, DType dtype, int64_t N, int64_t K, int format) {
  const LinearTiles& tiles = simt::linear_tiles(machine(device));
  return gpu_batch_invariant_choice(tiles, kMultiprocessors, dtype, N, K, format);
}

}  // namespace fdpp

#define FDPP_SIMT_LIBRARY(machine)                                                           \
  STABLE_TORCH_LIBRARY(fdpp_simt_##machine, m) { fdpp::schemas::define(m); }                 \
  STABLE_TORCH_LIBRARY_IMPL(fdpp_simt_##machine, CPU, m) {                                   \
    fdpp::implement<fdpp::GpuOperators<fdpp::SimtBackend<fdpp::simt::Machine::machine>>>(m); \
  }

FDPP_SIMT_LIBRARY(nvidia)
FDPP_SIMT_LIBRARY(cdna)
FDPP_SIMT_LIBRARY(rdna)
FDPP_EXPORT_LIBRARY(fdpp::library)
