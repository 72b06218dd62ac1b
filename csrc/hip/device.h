// The runtime of the device and what its counterpart in csrc/cuda spells differently. First header of every launcher.
#pragma once

#define FDPP_DEVICE __host__ __device__
#define FDPP_OUTLINE FDPP_INLINE
#define FDPP_PRAGMA(text) _Pragma(#text)
#define FDPP_UNROLL FDPP_PRAGMA(unroll)
#define FDPP_UNROLL_BY(count) FDPP_PRAGMA(unroll count)

// The second argument of __launch_bounds__ means something else on HIP. We leave it out.
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

constexpr hipDeviceAttribute_t kSharedBytesOfBlock = hipDeviceAttributeMaxSharedMemoryPerBlock;

// Of float32 numbers, per compute unit ("AMD Instinct MI300 Instruction Set Architecture", "RDNA3 Instruction Set
// Architecture").
inline int multiplies_per_cycle(int, int) { return 64; }

// Of data, per tick of the clock that the runtime tells for the memory: HBM2e, HBM3 as gfx942 counts it, GDDR6 ("AMD
// CDNA 3", "AMD RDNA 3" white papers: 5.3 TB/s of 8192 bits at 1.3 GHz, 20 Gb/s a pin at 1.25 GHz).
inline double transfers_per_clock(int major, int minor) {
  return major >= 10 ? 16.0 : major == 9 && minor == 4 ? 4.0 : 2.0;
}

// Blocks of one launch: the threads of a grid are counted in 32 bits ("HIP Programming Manual", hipModuleLaunchKernel).
inline int64_t max_blocks(int threads) { return INT64_C(0xffffffff) / threads; }

// Kernels of a stream do not overlap.
inline bool waits_for_producers(int) { return false; }

inline hipError_t stream_id(hipStream_t stream, unsigned long long* id) {
  *id = reinterpret_cast<unsigned long long>(stream);
  return hipSuccess;
}

// The capture that a stream is in and its graph so far; 0 and null outside of one.
inline hipError_t capture_of(hipStream_t stream, unsigned long long* id, hipGraph_t* graph) {
  hipStreamCaptureStatus status = hipStreamCaptureStatusNone;
  const hipError_t error = hipStreamGetCaptureInfo_v2(stream, &status, id, graph, nullptr, nullptr);
  if (status == hipStreamCaptureStatusActive) return error;
  *id = 0;
  *graph = nullptr;
  return error;
}

// The runtime calls `done` when the graph and what was instantiated from it are gone; never, before ROCm 5.3.
inline hipError_t when_gone(hipGraph_t graph, hipHostFn_t done, void* argument) {
#if HIP_VERSION >= 50300000
  hipUserObject_t object;
  const hipError_t error = hipUserObjectCreate(&object, argument, done, 1, hipUserObjectNoDestructorSync);
  return error != hipSuccess ? error : hipGraphRetainUserObject(graph, object, 1, hipGraphUserObjectMove);
#else
  static_cast<void>(graph), static_cast<void>(done), static_cast<void>(argument);
  return hipSuccess;
#endif
}

// Shared memory is apart from the cache.
inline hipError_t prefer_shared_memory(const void*, int, int) { return hipSuccess; }

inline hipError_t start(const void* kernel, int64_t blocks, int threads, int shared_bytes, void** arguments,
                        hipStream_t stream, bool) {
  return hipLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), arguments,
                         static_cast<size_t>(shared_bytes), stream);
}

}  // namespace fdpp::gpu
