// The runtime of the device and what its counterpart in csrc/hip spells differently. First header of every launcher.
#pragma once

#define FDPP_DEVICE __host__ __device__
#define FDPP_PRAGMA(text) _Pragma(#text)
#define FDPP_UNROLL FDPP_PRAGMA(unroll)
#define FDPP_UNROLL_BY(count) FDPP_PRAGMA(unroll count)

// Registers are shared by as many blocks of a multiprocessor as are named here.
#define FDPP_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__((threads), (blocks))

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace fdpp::gpu {

constexpr const char* kVendor = "cuda";  // as in the names of dataflow tables

constexpr cudaDeviceAttr kSharedBytesOfBlock = cudaDevAttrMaxSharedMemoryPerBlockOptin;

// Of float32 numbers, per multiprocessor (CUDA C++ Programming Guide, "Arithmetic Instructions").
inline int multiplies_per_cycle(int major, int minor) { return major == 8 && minor == 0 ? 64 : 128; }

// Of data, per tick of the clock that the runtime tells for the memory: double data rate.
inline double transfers_per_clock(int, int) { return 2.0; }

// Blocks of one launch (CUDA C++ Programming Guide, "Compute Capabilities").
inline int64_t max_blocks(int) { return INT32_MAX; }

// Whether code for this version of the virtual architecture (90: compute capability 9.0) has the wait of wait_for_producers().
inline bool waits_for_producers(int ptx_version) { return ptx_version >= 90; }

// Unlike its handle, the number of a stream is never used again.
inline cudaError_t stream_id(cudaStream_t stream, unsigned long long* id) { return cudaStreamGetId(stream, id); }

// `overlaps`: the kernel may start before the one in front of it on the stream has ended (CUDA C++ Programming Guide,
// "Programmatic Dependent Launch and Synchronization").
inline cudaError_t start(const void* kernel, int64_t blocks, int threads, int shared_bytes, void** arguments,
                         cudaStream_t stream, bool overlaps) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = overlaps ? 1 : 0;
  return cudaLaunchKernelExC(&config, kernel, arguments);
}

}  // namespace fdpp::gpu
