// decode_attention of the GPU libraries: one source for both vendors, whose tensors torch gives the same dispatch key. Plain
// C++: torch's headers under a GPU compiler want more than these libraries need.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/gpu_launch.h"
#include "torch/shared/gpu_attention.h"
#include "torch/shared/schemas.h"

// A torch without GPU support has no such function. Weak, so that the library loads there all the same.
#pragma weak aoti_torch_get_current_cuda_stream

namespace fdpp {

namespace {

constexpr int kMinSplitKeys = 256;

void check_launch(const char* problem) {
  if (problem != nullptr) fail(kDecodeAttention, problem);
}

// Never waits for the device: a call can be captured in a graph.
Tensor run_gpu(const AttentionArguments& arguments) {
  const AttentionParams params = gpu_attention_params(arguments);
  const int32_t device = arguments.q.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const gpu::DeviceInfo info = gpu::attention_device(params.dtype, params.head_dim);
  check_launch(info.problem);
  const GpuAttention call =
      plan_gpu_attention(arguments, params, {info.multiprocessors * info.blocks_per_multiprocessor, kMinSplitKeys});
  if (params.batch == 0) return call.out;
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  if (call.arrivals.has_value()) {
    const int64_t bytes = call.arrivals->numel() * static_cast<int64_t>(sizeof(int32_t));
    check_launch(gpu::zero(call.params.arrivals, bytes, stream));
  }
  check_launch(gpu::decode_attention(call.params, stream));
  return call.out;
}

#ifdef FDPP_RUNNING_MAXIMUM
STABLE_TORCH_LIBRARY(fdpp_running_maximum, m) { m.def(schemas::kDecodeAttention); }
STABLE_TORCH_LIBRARY_IMPL(fdpp_running_maximum, CUDA, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(fdpp, CUDA, m) {
#endif
  m.impl("decode_attention", TORCH_BOX(&decode_attention<run_gpu>));
}

}  // namespace

}  // namespace fdpp

// What the kernels were compiled for, for `fdpp info` (fdpp/native.py).
extern "C" __attribute__((visibility("default"))) const char* fdpp_gpu_architectures() { return FDPP_GPU_ARCHITECTURES; }
