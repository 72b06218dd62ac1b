// Generated from csrc/cuda/decode_attention.cu by `make hipify`: edit that file.
// Launches csrc/gpu/attention_kernel.h.
#include "hip/arch.h"
#include "hip/device.h"

#include "gpu/kernel.h"

namespace fdpp::gpu {

template Kernel kernel_of(const AttentionParams&, int);

AttentionTiles attention_tiles(int warp_size, int head_dim, int tile) {
  return with_policy(warp_size, [&]<typename Arch>(Arch) { return Arch::attention_tiles(head_dim, tile); });
}

}  // namespace fdpp::gpu
