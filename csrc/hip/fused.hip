// Generated from csrc/cuda/fused.cu by `make hipify`: edit that file.
// Launches csrc/gpu/norm_kernel.h, silu_mul_kernel.h and rope_kernel.h.
#include "hip/arch.h"
#include "hip/device.h"

#include "gpu/kernel.h"

namespace fdpp::gpu {

template Kernel kernel_of(const NormParams&, int);
template Kernel kernel_of(const SiluMulParams&, int);
template Kernel kernel_of(const RopeParams&, int);

}  // namespace fdpp::gpu
