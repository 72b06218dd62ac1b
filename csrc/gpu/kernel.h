// The entry of every kernel of csrc/gpu, for the compilers of GPUs: launchers include it after arch.h and device.h.
#pragma once

#include "gpu/launch.h"
#include "gpu/with_kernel.h"

namespace fdpp::gpu {

template <typename K, typename Params>
__global__ void FDPP_LAUNCH_BOUNDS(K::kThreads, K::kMinBlocksPerSM) kernel(const __grid_constant__ Params params) {
  if constexpr (K::Policy::kRunsHere) K::run(params);
}

// The kernel for these parameters, on a device that `policy` was written for.
template <typename Arch, typename Params>
Kernel find_kernel(Arch, const Params& params) {
  return with_kernel<Kernel, Arch>(params, [&]<typename K>(std::type_identity<K>) -> Kernel {
    return {reinterpret_cast<const void*>(&kernel<K, Params>), K::kThreads, K::kSharedBytes, K::grid(params)};
  });
}

template <typename Params>
Kernel kernel_of(const Params& params, int warp_size) {
  return with_policy(warp_size, [&](auto policy) { return find_kernel(policy, params); });
}

}  // namespace fdpp::gpu
