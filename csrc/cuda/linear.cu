// Launches csrc/gpu/gemv_kernel.h, flat_gemm_kernel.h and linear_epilogue.h.
#include "cuda/arch.h"
#include "cuda/device.h"

#include "gpu/all_linear_tiles.h"
#include "gpu/kernel.h"

namespace fdpp::gpu {

template Kernel kernel_of(const GemvParams&, int);
template Kernel kernel_of(const FlatGemmParams&, int);
template Kernel kernel_of(const EpilogueParams&, int);

const LinearTiles& linear_tiles(int warp_size) {
  return *with_policy(warp_size, []<typename Arch>(Arch) { return &kLinearTiles<Arch>; });
}

}  // namespace fdpp::gpu
