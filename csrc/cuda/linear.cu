// Launches csrc/gpu/gemv_kernel.h, flat_gemm_kernel.h and linear_epilogue.h.
#include "cuda/arch.h"
#include "cuda/device.h"

#include "gpu/kernel.h"

namespace fdpp::gpu {

Kernel kernel_of(const GemvParams& params, int warp_size) {
  return with_policy(warp_size, [&](auto policy) { return find_kernel(policy, params); });
}

Kernel kernel_of(const FlatGemmParams& params, int warp_size) {
  return with_policy(warp_size, [&](auto policy) { return find_kernel(policy, params); });
}

Kernel kernel_of(const EpilogueParams& params, int warp_size) {
  return with_policy(warp_size, [&](auto policy) { return find_kernel(policy, params); });
}

const LinearTiles& linear_tiles(int warp_size) {
  return *with_policy(warp_size, []<typename Arch>(Arch) { return &kLinearTiles<Arch>; });
}

}  // namespace fdpp::gpu
