// The runtime of the device and what its counterpart in csrc/hip spells differently. First header of every launcher.
#pragma once

#define FDPP_DEVICE __host__ __device__
#define FDPP_OUTLINE FDPP_INLINE
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

// Whether code for this version of the virtual architecture (90: compute capability 9.0) has the wait of
// wait_for_producers().
inline bool waits_for_producers(int ptx_version) { return ptx_version >= 90; }

// Unlike its handle, the number of a stream is never used again.
inline cudaError_t stream_id(cudaStream_t stream, unsigned long long* id) { return cudaStreamGetId(stream, id); }

// The capture that a stream is in and its graph so far; 0 and null outside of one.
inline cudaError_t capture_of(cudaStream_t stream, unsigned long long* id, cudaGraph_t* graph) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
#if CUDART_VERSION >= 13000
  const cudaError_t error = cudaStreamGetCaptureInfo(stream, &status, id, graph, nullptr, nullptr, nullptr);
#else
  const cudaError_t error = cudaStreamGetCaptureInfo_v2(stream, &status, id, graph, nullptr, nullptr);
#endif
  if (status == cudaStreamCaptureStatusActive) return error;
  *id = 0;
  *graph = nullptr;
  return error;
}

// The runtime calls `done`, from a thread of its own, when the graph and what was instantiated from it are gone.
inline cudaError_t when_gone(cudaGraph_t graph, cudaHostFn_t done, void* argument) {
  cudaUserObject_t object;
  const cudaError_t error = cudaUserObjectCreate(&object, argument, done, 1, cudaUserObjectNoDestructorSync);
  return error != cudaSuccess ? error : cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove);
}

// Of the memory of a multiprocessor, the kernel is to have as shared memory what its resident blocks need; L1 has the
// rest. Without this hint it runs with what the kernel before it has left. Loads to registers need L1 on their way:
// after a kernel that had taken all, the direct flat GEMM took 1.7 times as long (bench/results/README.md).
inline cudaError_t prefer_shared_memory(const void* kernel, int blocks, int shared_bytes) {
  int device = 0, all = 0, reserved = 0;  // reserved: for the system, of each block
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&reserved, cudaDevAttrReservedSharedMemoryPerBlock, device);
  }
  if (error != cudaSuccess) return error;
  const int64_t needed = int64_t{blocks} * (shared_bytes + reserved), percent = (100 * needed + all - 1) / all;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                              static_cast<int>(percent < 100 ? percent : 100));
}

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
