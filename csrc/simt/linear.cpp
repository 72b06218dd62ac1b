// Runs csrc/gpu/gemv_kernel.h, flat_gemm_kernel.h, direct_gemm_kernel.h and linear_epilogue.h.
#include "gpu/all_linear_tiles.h"
#include "simt/run_kernel.h"

namespace fdpp::simt {

template void run(Machine, const GemvParams&, uint64_t);
template void run(Machine, const FlatGemmParams&, uint64_t);
template void run(Machine, const EpilogueParams&, uint64_t);

const LinearTiles& linear_tiles(Machine machine) {
  return *with_policy(machine, []<typename Arch>(Arch) { return &kLinearTiles<Arch>; });
}

}  // namespace fdpp::simt
