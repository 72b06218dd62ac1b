// The runtime of the device and what its counterpart in csrc/cuda spells differently. First header of every launcher.
#pragma once

#define FDPP_DEVICE __host__ __device__
#define FDPP_PRAGMA(text) _Pragma(#text)
#define FDPP_UNROLL FDPP_PRAGMA(unroll)
#define FDPP_UNROLL_BY(count) FDPP_PRAGMA(unroll count)

// The second number of __launch_bounds__ is another one here; the compiler's own choice does.
#define FDPP_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__((threads))

#include <hip/hip_runtime.h>

#include <cstddef>
#include <cstdint>

// Kernel arguments lie in constant memory, and are read there, without being asked to.
#ifndef __grid_constant__
#define __grid_constant__
#endif

namespace fdpp::gpu {

constexpr const char* kVendor = "hip";  // as in the names of dataflow tables

// Of float32 numbers, per compute unit ("AMD Instinct MI300 Instruction Set Architecture", "RDNA3 Instruction Set Architecture").
inline int multiplies_per_cycle(int, int) { return 64; }

// Blocks of one launch: the threads of a grid are counted in 32 bits ("HIP Programming Manual", hipModuleLaunchKernel).
inline int64_t max_blocks(int threads) { return INT64_C(0xffffffff) / threads; }

// The last argument is the major compute capability, which tells nothing here.
inline hipError_t start(const void* kernel, int64_t blocks, int threads, int shared_bytes, void** arguments,
                        hipStream_t stream, int) {
  return hipLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), arguments,
                         static_cast<size_t>(shared_bytes), stream);
}

}  // namespace fdpp::gpu
