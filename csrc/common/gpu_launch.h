// What a binding calls: the launchers of a GPU library (csrc/cuda or csrc/hip).
#pragma once

#include "common/attention_block.h"
#include "common/params.h"

namespace fdpp {

namespace gpu {

// All launch on the current device and `stream`, and return what went wrong, or null. AttentionParams::arrivals must be zero
// when num_splits > 1 (a memset on the same stream, see zero()); partial and arrivals may be null otherwise.
const char* decode_attention(const AttentionParams& params, void* stream);
const char* zero(void* data, int64_t bytes, void* stream);

struct DeviceInfo {
  const char* problem;     // why there is no device, or null
  int multiprocessors;
  int blocks_per_multiprocessor;  // attention blocks that run at a time on one, for a head_dim
};
DeviceInfo attention_device(DType dtype, int head_dim);

}  // namespace gpu
}  // namespace fdpp
