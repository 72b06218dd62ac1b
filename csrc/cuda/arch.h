// Which policy runs on a device.
#pragma once

#include "cuda/device.h"
#include "cuda/nvidia.h"

namespace fdpp::gpu {

template <typename Use>
auto with_policy(int /*warp_size*/, Use use) {
  return use(cuda::Nvidia{});
}

}  // namespace fdpp::gpu
