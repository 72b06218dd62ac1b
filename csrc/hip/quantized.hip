// Generated from csrc/cuda/quantized.cu by `make hipify`: edit that file.
// Launches csrc/gpu/packed_gemm_kernel.h and dequantize_kernel.h.
#include "hip/arch.h"
#include "hip/device.h"

#include "gpu/kernel.h"

namespace fdpp::gpu {

template Kernel kernel_of(const PackedGemmParams&, int);
template Kernel kernel_of(const UnpackParams&, int);

}  // namespace fdpp::gpu
