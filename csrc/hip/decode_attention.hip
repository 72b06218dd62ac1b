// Generated from csrc/cuda/decode_attention.cu by `make hipify`: edit that file.
// Launches csrc/common/attention_kernel.h.
#include "hip/arch.h"
#include "hip/device.h"

#include <map>
#include <mutex>
#include <tuple>

#include "common/attention_kernel.h"
#include "common/gpu_launch.h"

namespace fdpp::gpu {
namespace {

template <typename P, typename T, int D>
__global__ void __launch_bounds__((DecodeAttention<P, T, D>::kThreads))
    decode_attention_kernel(const __grid_constant__ AttentionParams params) {
  if constexpr (P::kRunsHere) DecodeAttention<P, T, D>::run(params);
}

struct Kernel {
  const void* function;
  int threads;
  int shared_bytes;
};

template <typename P, typename T, int D>
Kernel kernel() {
  using Attention = DecodeAttention<P, T, D>;
  return {reinterpret_cast<const void*>(&decode_attention_kernel<P, T, D>), Attention::kThreads, Attention::kSharedBytes};
}

template <typename P, typename T>
Kernel kernel_of(int head_dim) {
  switch (head_dim) {
    case 64: return kernel<P, T, 64>();
    case 80: return kernel<P, T, 80>();
    case 96: return kernel<P, T, 96>();
    case 128: return kernel<P, T, 128>();
    case 192: return kernel<P, T, 192>();
    case 256: return kernel<P, T, 256>();
  }
  return {};
}

Kernel kernel_of(int warp_size, DType dtype, int head_dim) {
  return with_policy(warp_size, [&]<typename P>(P) -> Kernel {
    switch (dtype) {
      case DType::f16: return kernel_of<P, f16>(head_dim);
      case DType::bf16: return kernel_of<P, bf16>(head_dim);
      case DType::f32: break;
    }
    return {};
  });
}

// What went wrong, or null. The runtime's memory of it is cleared: whoever asks next would take it for an error of their own.
const char* problem(hipError_t error) {
  if (error == hipSuccess) return nullptr;
  static_cast<void>(hipGetLastError());
  return hipGetErrorString(error);
}

// A kernel on a device, ready to be launched.
struct Prepared {
  Kernel kernel;
  int major;
  DeviceInfo info;
};

Prepared prepare(int device, DType dtype, int head_dim) {
  Prepared out{};
  int warp_size = 0;
  const auto failed = [&](hipError_t error) { return (out.info.problem = problem(error)) != nullptr; };
  if (failed(hipDeviceGetAttribute(&warp_size, hipDeviceAttributeWarpSize, device)) ||
      failed(hipDeviceGetAttribute(&out.major, hipDeviceAttributeComputeCapabilityMajor, device)) ||
      failed(hipDeviceGetAttribute(&out.info.multiprocessors, hipDeviceAttributeMultiprocessorCount, device))) {
    return out;
  }
  out.kernel = kernel_of(warp_size, dtype, head_dim);
  if (out.kernel.function == nullptr) {
    out.info.problem = "no kernel for this dtype and head_dim";
    return out;
  }
  // A block has 48 KiB unless its kernel asks for more.
  const bool large = out.kernel.shared_bytes > 48 * 1024;
  if (large && failed(hipFuncSetAttribute(out.kernel.function, hipFuncAttributeMaxDynamicSharedMemorySize,
                                           out.kernel.shared_bytes))) {
    return out;
  }
  int blocks = 0;
  if (failed(hipOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, out.kernel.function, out.kernel.threads,
                                                           static_cast<size_t>(out.kernel.shared_bytes)))) {
    return out;
  }
  out.info.blocks_per_multiprocessor = blocks;
  if (blocks == 0) out.info.problem = "the kernel wants more shared memory or registers than the device has";
  return out;
}

// Of the current device; each kernel is prepared once on each.
Prepared prepared(DType dtype, int head_dim) {
  int device = 0;
  if (const char* wrong = problem(hipGetDevice(&device))) return {{}, 0, {wrong, 0, 0}};
  static std::mutex mutex;
  static std::map<std::tuple<int, DType, int>, Prepared> kernels;
  const std::lock_guard lock(mutex);
  const auto key = std::make_tuple(device, dtype, head_dim);
  const auto found = kernels.find(key);
  return found != kernels.end() ? found->second : kernels.emplace(key, prepare(device, dtype, head_dim)).first->second;
}

}  // namespace

const char* decode_attention(const AttentionParams& params, void* stream) {
  const Prepared ready = prepared(params.dtype, params.head_dim);
  if (ready.info.problem != nullptr) return ready.info.problem;
  const int64_t blocks = attention_units(params) * params.num_splits;
  if (blocks == 0) return nullptr;
  if (blocks > max_blocks(ready.kernel.threads)) return "more blocks than one launch can have; use fewer splits or sequences";
  void* arguments[] = {const_cast<AttentionParams*>(&params)};
  return problem(launch(ready.kernel.function, blocks, ready.kernel.threads, ready.kernel.shared_bytes, arguments,
                        static_cast<hipStream_t>(stream), ready.major));
}

const char* zero(void* data, int64_t bytes, void* stream) {
  return problem(hipMemsetAsync(data, 0, static_cast<size_t>(bytes), static_cast<hipStream_t>(stream)));
}

DeviceInfo attention_device(DType dtype, int head_dim) { return prepared(dtype, head_dim).info; }

}  // namespace fdpp::gpu
