// Generated from csrc/cuda/fused.cu by `make hipify`: edit that file.
// Launches csrc/gpu/norm_kernel.h, silu_mul_kernel.h and rope_kernel.h.
#include "hip/arch.h"
#include "hip/device.h"

#include "gpu/kernel.h"

namespace fdpp::gpu {

Kernel kernel_of(const NormParams& params, int warp_size) {
  return with_policy(warp_size, [&](auto policy) { return find_kernel(policy, params); });
}

Kernel kernel_of(const SiluMulParams& params, int warp_size) {
  return with_policy(warp_size, [&](auto policy) { return find_kernel(policy, params); });
}

Kernel kernel_of(const RopeParams& params, int warp_size) {
  return with_policy(warp_size, [&](auto policy) { return find_kernel(policy, params); });
}

}  // namespace fdpp::gpu
