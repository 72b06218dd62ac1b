// The GPU kernels, executed by the host (host.h). For tests: nothing here is fast.
#pragma once

#include <cstdint>

#include "common/params.h"
#include "gpu/attention_tiles.h"
#include "gpu/linear_tiles.h"

namespace fdpp::simt {

enum class Machine { nvidia, cdna, rdna };

// Runs the kernel of any of the structs of common/params.h; throws std::runtime_error with the report of what a GPU
// would have got wrong. The seed chooses the order in which blocks and their threads run.
template <typename Params>
void run(Machine machine, const Params& params, uint64_t seed);

const LinearTiles& linear_tiles(Machine machine);
AttentionTiles attention_tiles(Machine machine, int head_dim, int tile);

}  // namespace fdpp::simt
