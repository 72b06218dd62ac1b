// The GPU kernels, executed by the host (host.h). For tests: nothing here is fast.
#pragma once

#include <cstdint>

#include "common/params.h"

namespace fdpp::simt {

enum class Machine { nvidia, cdna, rdna };

// Runs the kernel; throws std::runtime_error with the report of what a GPU would have got wrong. The seed chooses the order
// in which blocks and their threads run.
void decode_attention(Machine machine, const AttentionParams& params, uint64_t seed);

}  // namespace fdpp::simt
