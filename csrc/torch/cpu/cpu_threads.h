// torch's thread pool, for the CPU backend.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "cpu/parallel.h"

namespace fdpp {

inline cpu::Threads torch_threads() {
  const auto run = [](int n, void (*body)(void*), void* context) {
    torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(context);
    });
  };
  return {static_cast<int>(torch::stable::get_num_threads()), run};
}

}  // namespace fdpp
