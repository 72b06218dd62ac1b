// Launches the kernels of csrc/common.
#include "common/kernels.h"

#include <stdexcept>

#include "simt/backend.h"
#include "simt/cdna.h"
#include "simt/nvidia.h"
#include "simt/rdna.h"

namespace fdpp::simt {

namespace {

template <typename Use>
auto with_policy(Machine machine, Use use) {
  switch (machine) {
    case Machine::nvidia: return use(Nvidia{});
    case Machine::cdna: return use(Cdna{});
    case Machine::rdna: break;
  }
  return use(Rdna{});
}

}  // namespace

template <typename Params>
void run(Machine machine, const Params& params, uint64_t seed) {
  const bool found = with_policy(machine, [&]<typename P>(P) {
    return with_kernel<bool, P>(params, [&]<typename Kernel>(std::type_identity<Kernel>) {
      const Grid grid{Kernel::blocks(params), Kernel::kThreads, P::kWarpSize, Kernel::kSharedBytes};
      launch(grid, seed, [](const void* p) { Kernel::run(*static_cast<const Params*>(p)); }, &params);
      return true;
    });
  });
  if (!found) throw std::runtime_error("simt: no kernel for these parameters");
}

template void run(Machine, const AttentionParams&, uint64_t);
template void run(Machine, const GemvParams&, uint64_t);
template void run(Machine, const FlatGemmParams&, uint64_t);
template void run(Machine, const FinishParams&, uint64_t);
template void run(Machine, const NormParams&, uint64_t);
template void run(Machine, const SiluMulParams&, uint64_t);
template void run(Machine, const RopeParams&, uint64_t);

AttentionTiles attention_tiles(Machine machine, int head_dim, int tile) {
  return with_policy(machine, [&]<typename P>(P) { return P::attention_tiles(head_dim, tile); });
}

const LinearTiles& linear_tiles(Machine machine) {
  return *with_policy(machine, []<typename P>(P) { return &kLinearTiles<P>; });
}

}  // namespace fdpp::simt
