// Which policy runs on a device. A library holds code for both kinds; on each, the kernels of the other are empty
// (kRunsHere).
#pragma once

#include "hip/cdna.h"
#include "hip/device.h"
#include "hip/rdna.h"

namespace fdpp::gpu {

template <typename Use>
auto with_policy(int warp_size, Use use) {
  return warp_size == hip::Cdna::kWarpSize ? use(hip::Cdna{}) : use(hip::Rdna{});
}

}  // namespace fdpp::gpu
