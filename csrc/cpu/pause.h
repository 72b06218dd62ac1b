// A hint to the processor that a thread spins.
#pragma once

#include "common/macros.h"

namespace fdpp::cpu {

FDPP_INLINE void pause_processor() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace fdpp::cpu
