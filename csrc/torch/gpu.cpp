// The operators of the GPU libraries: one source for both vendors, whose tensors torch gives the same dispatch key.
// Plain C++: torch's headers under a GPU compiler want more than these libraries need.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>

#include "common/library.h"
#include "gpu/launch.h"
#include "torch/arguments/schemas.h"
#include "torch/gpu_operators.h"

// A torch without GPU support has no such function. Weak, so that the library loads there all the same.
#pragma weak aoti_torch_get_current_cuda_stream

namespace fdpp {

namespace {

// Never waits for the device: a call can be captured in a graph.
class GpuBackend {
 public:
  GpuBackend(const char* op, const Tensor& x)
      : op_(op), guard_(x.get_device_index()), device_(gpu::device(x.get_device_index())) {
    check(device_.problem);
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream_));
  }

  int device() const { return device_.index; }
  int multiprocessors() const { return device_.multiprocessors; }
  double bandwidth() const { return device_.facts.bandwidth; }
  const LinearTiles& tiles() const { return gpu::linear_tiles(device_.warp_size); }
  int flat_tiles() const { return tiles().fitting(device_.shared_bytes); }
  AttentionTiles attention_tiles(int head_dim, int tile) const {
    const AttentionTiles found = gpu::attention_tiles(device_.warp_size, head_dim, tile);
    return found.shared_limit <= device_.shared_bytes ? found : AttentionTiles{};
  }
  AttentionCosts attention_costs() const { return {}; }

  template <typename Params>
  int resident_blocks(const Params& params) const {
    const gpu::Residency found = gpu::residency(gpu::kernel_of(params, device_.warp_size), device_.index);
    check(found.problem);
    return found.blocks;
  }

  int32_t* arrivals(int64_t count) const {
    const gpu::Arrivals found = gpu::arrivals(count, stream_, device_.index);
    check(found.problem);
    return found.counters;
  }

  void prepare(Tensor&) const {}

  template <typename Params>
  void run(const Params& params) const {
    check(gpu::launch(gpu::kernel_of(params, device_.warp_size), &params, stream_, device_.index));
  }

 private:
  void check(const char* problem) const {
    if (problem != nullptr) fail(op_, problem);
  }

  const char* op_;
  torch::stable::accelerator::DeviceGuard guard_;
  gpu::Device device_;
  void* stream_ = nullptr;
};

gpu::Device device_of(int index) {
  const gpu::Device device = gpu::device(index);
  if (device.problem != nullptr) throw std::invalid_argument(device.problem);
  return device;
}

class GpuLibrary final : public Library {
 public:
  std::string architectures() const override { return FDPP_GPU_ARCHITECTURES; }
};

const GpuLibrary library{};

#ifdef FDPP_RUNNING_MAXIMUM
STABLE_TORCH_LIBRARY(fdpp_running_maximum, m) { schemas::define(m); }
STABLE_TORCH_LIBRARY_IMPL(fdpp_running_maximum, CUDA, m) { implement<GpuOperators<GpuBackend>>(m); }
#else
STABLE_TORCH_LIBRARY_IMPL(fdpp, CUDA, m) { implement<GpuOperators<GpuBackend>>(m); }
#endif

}  // namespace

std::string linear_device(int device) {
  const gpu::DeviceName name = gpu::device_name(device);
  if (name.problem != nullptr) throw std::invalid_argument(name.problem);
  return name.text;
}

int flat_gemm_configs(int device, DType dtype, int format) {
  if (dtype == DType::f32) return 0;
  if (format != kPlain) return kNumSpreads;
  if (device == kAnyDevice) return kFlatTiles * kNumSpreads;
  const gpu::Device found = device_of(device);
  return gpu::linear_tiles(found.warp_size).fitting(found.shared_bytes) * kNumSpreads;
}

bool has_gemv(int format) { return format == kPlain; }

Choice linear_rule(int device, DType dtype, int64_t, int64_t K, int64_t M, int format) {
  const gpu::Device found = device_of(device);
  return format == kPlain ? gpu_rule(found.facts, dtype, K, M) : packed_gpu_rule(dtype, M);
}

Choice batch_invariant_choice(int device, DType dtype, int64_t N, int64_t K, int format) {
  const gpu::Device found = device_of(device);
  return gpu_batch_invariant_choice(gpu::linear_tiles(found.warp_size), found.multiprocessors, dtype, N, K, format);
}

}  // namespace fdpp

FDPP_EXPORT_LIBRARY(fdpp::library)
