// Runs csrc/gpu/attention_kernel.h.
#include "simt/run_kernel.h"

namespace fdpp::simt {

template void run(Machine, const AttentionParams&, uint64_t);

AttentionTiles attention_tiles(Machine machine, int head_dim, int tile) {
  return with_policy(machine, [&]<typename Arch>(Arch) { return Arch::attention_tiles(head_dim, tile); });
}

}  // namespace fdpp::simt
