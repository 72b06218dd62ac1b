// What a binding calls: the launchers of a GPU library (csrc/cuda or csrc/hip). They say what went wrong, or null.
#pragma once

#include "common/dataflow.h"
#include "common/params.h"
#include "gpu/attention_tiles.h"
#include "gpu/linear_tiles.h"

namespace fdpp::gpu {

struct Device {
  const char* problem;
  int index, warp_size, multiprocessors;
  int shared_bytes;  // that a block can have
  GpuFacts facts;
};
Device device(int index);  // asked once, then remembered

// The name by which dataflow tables know a device.
struct DeviceName {
  const char* problem;
  char text[256];
};
DeviceName device_name(int index);

struct Kernel {
  const void* function;  // null: there is none for these parameters
  int threads, shared_bytes;
  int64_t blocks;
};
// For parameters of common/params.h. The launchers (*.cu) instantiate it.
template <typename Params>
Kernel kernel_of(const Params& params, int warp_size);
const LinearTiles& linear_tiles(int warp_size);
AttentionTiles attention_tiles(int warp_size, int head_dim, int tile);

// What follows is about the current device, whose index is given.

struct Residency {
  const char* problem;
  int blocks;     // that run at a time on one multiprocessor
  bool overlaps;  // whether the kernel waits for the one in front of it, which it then may overlap
};
Residency residency(const Kernel& kernel, int device);

// `params`: those that kernel_of() was asked for. Nothing happens without blocks.
const char* launch(const Kernel& kernel, const void* params, void* stream, int device);

// Zeroed counters that tell a block whether it is the last to finish. Launches that may overlap get different counters.
// Each launch sets its own back to 0. The counters of a stream live as long as the process, the counters of a graph as
// long as the graph. (A graph that is instantiated twice has them once: its instances must not run at the same time.)
struct Arrivals {
  const char* problem;
  int32_t* counters;
};
Arrivals arrivals(int64_t count, void* stream, int device);

}  // namespace fdpp::gpu
