// The operators of the GPU libraries: one source for both vendors, whose tensors torch gives the same dispatch key. Plain C++:
// torch's headers under a GPU compiler want more than these libraries need.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <mutex>
#include <vector>

#include "common/gpu_launch.h"
#include "torch/shared/gpu_operators.h"
#include "torch/shared/schemas.h"

// A torch without GPU support has no such function. Weak, so that the library loads there all the same.
#pragma weak aoti_torch_get_current_cuda_stream

namespace fdpp {

namespace {

// Never waits for the device: a call can be captured in a graph.
class GpuBackend {
 public:
  GpuBackend(const char* op, const Tensor& x) : op_(op), guard_(x.get_device_index()), device_(gpu::device()) {
    check(device_.problem);
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream_));
  }

  int device() const { return device_.index; }
  int multiprocessors() const { return device_.multiprocessors; }
  LinearTiles tiles() const { return gpu::linear_tiles(device_.warp_size); }
  int min_split_keys() const { return 256; }

  template <typename Params>
  int resident_blocks(const Params& params) const {
    const gpu::Residency found = gpu::residency(gpu::kernel_of(params, device_.warp_size));
    check(found.problem);
    return found.blocks;
  }

  int32_t* arrivals(int64_t count) const {
    const gpu::Arrivals found = gpu::arrivals(count, stream_);
    check(found.problem);
    return found.counters;
  }

  void prepare(Tensor&) const {}

  template <typename Params>
  void run(const Params& params) const {
    check(gpu::launch(gpu::kernel_of(params, device_.warp_size), &params, stream_));
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

// What the rule needs to know of a device, asked for once.
GpuFacts facts_of(int device) {
  static std::mutex mutex;
  static std::vector<GpuFacts> known;
  const std::lock_guard lock(mutex);
  while (static_cast<int>(known.size()) <= device) {
    const gpu::DeviceFacts facts = gpu::device_facts(static_cast<int>(known.size()));
    known.push_back({facts.bandwidth, facts.multiplies});
  }
  return known[device];
}

#ifdef FDPP_RUNNING_MAXIMUM
STABLE_TORCH_LIBRARY(fdpp_running_maximum, m) { schemas::define(m); }
STABLE_TORCH_LIBRARY_IMPL(fdpp_running_maximum, CUDA, m) { GpuOperators<GpuBackend>::implement(m); }
#else
STABLE_TORCH_LIBRARY_IMPL(fdpp, CUDA, m) { GpuOperators<GpuBackend>::implement(m); }
#endif

}  // namespace

std::string linear_device(int device) {
  const gpu::DeviceFacts facts = gpu::device_facts(device);
  if (facts.problem != nullptr) fail("linear", facts.problem);
  return facts.name;
}

int flat_gemm_configs(DType dtype) { return dtype == DType::f32 ? 0 : kFlatConfigs; }

Choice linear_rule(int device, DType dtype, int64_t, int64_t K, int64_t M) {
  return gpu_rule(facts_of(device), dtype, K, M);
}

Choice batch_invariant_choice(int device, DType dtype, int64_t N, int64_t K) {
  const torch::stable::accelerator::DeviceGuard guard(device);
  const gpu::Device found = gpu::device();
  return gpu_batch_invariant_choice(gpu::linear_tiles(found.warp_size), found.multiprocessors, dtype, N, K);
}

}  // namespace fdpp

// What the kernels were compiled for, for `fdpp info` (fdpp/native.py).
extern "C" __attribute__((visibility("default"))) const char* fdpp_gpu_architectures() { return FDPP_GPU_ARCHITECTURES; }
