// Runs the kernels of csrc/gpu: what decode_attention.cpp, linear.cpp and fused.cpp share. They are three files so that
// compilers take them side by side.
#pragma once

#include <stdexcept>

#include "gpu/with_kernel.h"
#include "simt/backend.h"
#include "simt/cdna.h"
#include "simt/nvidia.h"
#include "simt/rdna.h"

namespace fdpp::simt {

template <typename Use>
auto with_policy(Machine machine, Use use) {
  switch (machine) {
    case Machine::nvidia: return use(Nvidia{});
    case Machine::cdna: return use(Cdna{});
    case Machine::rdna: break;
  }
  return use(Rdna{});
}

template <typename Params>
void run(Machine machine, const Params& params, uint64_t seed) {
  const bool found = with_policy(machine, [&]<typename Arch>(Arch) {
    return with_kernel<bool, Arch>(params, [&]<typename Kernel>(std::type_identity<Kernel>) {
      const Grid grid{Kernel::grid(params), Kernel::kThreads, Arch::kWarpSize, Kernel::kSharedBytes};
      launch(grid, seed, [](const void* p) { Kernel::run(*static_cast<const Params*>(p)); }, &params);
      return true;
    });
  });
  if (!found) throw std::runtime_error("simt: no kernel for these parameters");
}

}  // namespace fdpp::simt
