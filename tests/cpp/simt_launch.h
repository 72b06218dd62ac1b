// Launches of kernels by the executor, in every order that a seed gives.
#pragma once

#include "simt/executor.h"

namespace fdpp::test {

constexpr int kSeeds = 50;

template <typename Arch, typename Kernel>
void launch(int64_t blocks, int threads, int64_t shared_bytes, uint64_t seed, const Kernel& kernel) {
  simt::launch(
      {blocks, threads, Arch::kWarpSize, shared_bytes}, seed,
      [](const void* argument) { (*static_cast<const Kernel*>(argument))(); }, &kernel);
}

}  // namespace fdpp::test
