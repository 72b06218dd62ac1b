// What a binding calls: the launchers of a GPU library (csrc/cuda or csrc/hip). All of them are about the current device, and
// say what went wrong, or null.
#pragma once

#include "common/linear_tiles.h"
#include "common/params.h"

namespace fdpp::gpu {

struct Device {
  const char* problem;
  int index, warp_size, multiprocessors;
  int major;  // of the compute capability
};
Device device();

// What rules and tables need to know.
struct DeviceFacts {
  const char* problem;
  char name[256];
  double bandwidth;   // bytes per second, as the maker states it; 0 where the runtime does not tell
  double multiplies;  // float32 multiplications and additions per second, on the vector units
};
DeviceFacts device_facts(int index);

struct Kernel {
  const void* function;  // null: there is none for these parameters
  int threads, shared_bytes;
  int64_t blocks;
};
Kernel kernel_of(const AttentionParams& params, int warp_size);
Kernel kernel_of(const GemvParams& params, int warp_size);
Kernel kernel_of(const FlatGemmParams& params, int warp_size);
Kernel kernel_of(const FinishParams& params, int warp_size);
Kernel kernel_of(const NormParams& params, int warp_size);
Kernel kernel_of(const SiluMulParams& params, int warp_size);
Kernel kernel_of(const RopeParams& params, int warp_size);
LinearTiles linear_tiles(int warp_size);

// Blocks that run at a time on one multiprocessor.
struct Residency {
  const char* problem;
  int blocks;
};
Residency residency(const Kernel& kernel);

// `params`: those that kernel_of() was asked for. Nothing happens without blocks.
const char* launch(const Kernel& kernel, const void* params, void* stream);

// Counters that are 0, for blocks that wait for nobody else: those of launches that may run at the same time are different ones. A
// launch leaves them at 0, so that none has to be cleared. They live as long as the process.
struct Arrivals {
  const char* problem;
  int32_t* counters;
};
Arrivals arrivals(int64_t count, void* stream);

}  // namespace fdpp::gpu
