// Generated from csrc/cuda/launch.cu by `make hipify`: edit that file.
// The device, its kernels' residency, launches and counters: what all launchers share.
#include "hip/arch.h"
#include "hip/device.h"

#include <cstdio>
#include <map>
#include <mutex>
#include <tuple>

#include "common/gpu_launch.h"

namespace fdpp::gpu {
namespace {

// What went wrong, or null. The runtime's memory of it is cleared: whoever asks next would take it for an error of their own.
const char* problem(hipError_t error) {
  if (error == hipSuccess) return nullptr;
  static_cast<void>(hipGetLastError());
  return hipGetErrorString(error);
}

int attribute(hipDeviceAttribute_t which, int device) {
  int value = 0;
  return problem(hipDeviceGetAttribute(&value, which, device)) == nullptr ? value : 0;
}

Device describe(int index) {
  const int warp_size = attribute(hipDeviceAttributeWarpSize, index);
  return {warp_size == 0 ? "the device does not answer" : nullptr, index, warp_size,
          attribute(hipDeviceAttributeMultiprocessorCount, index), attribute(hipDeviceAttributeComputeCapabilityMajor, index)};
}

Residency prepare(const Kernel& kernel) {
  if (kernel.function == nullptr) return {"there is no kernel for these parameters", 0};
  // A block has 48 KiB unless its kernel asks for more.
  if (kernel.shared_bytes > 48 * 1024) {
    const char* wrong = problem(
        hipFuncSetAttribute(kernel.function, hipFuncAttributeMaxDynamicSharedMemorySize, kernel.shared_bytes));
    if (wrong != nullptr) return {wrong, 0};
  }
  int blocks = 0;
  const char* wrong = problem(hipOccupancyMaxActiveBlocksPerMultiprocessor(
      &blocks, kernel.function, kernel.threads, static_cast<size_t>(kernel.shared_bytes)));
  if (wrong == nullptr && blocks == 0) wrong = "the kernel wants more shared memory or registers than the device has";
  return {wrong, blocks};
}

// What is computed once and kept, unless it went wrong.
template <typename Key, typename Value>
class Memory {
 public:
  template <typename Make>
  Value get(const Key& key, Make make) {
    const std::lock_guard lock(mutex_);
    const auto found = values_.find(key);
    if (found != values_.end()) return found->second;
    const Value value = make();
    if (value.problem == nullptr) values_.emplace(key, value);
    return value;
  }

 private:
  std::mutex mutex_;
  std::map<Key, Value> values_;
};

// Memory of zeros that no capture of a graph takes for its own: the calls of this thread are not held against it, and the zeros
// are there when this returns.
Arrivals allocate(int64_t count) {
  hipStreamCaptureMode mode = hipStreamCaptureModeRelaxed;
  if (const char* wrong = problem(hipThreadExchangeStreamCaptureMode(&mode))) return {wrong, nullptr};
  void* memory = nullptr;
  hipStream_t stream = nullptr;
  const size_t bytes = static_cast<size_t>(count) * sizeof(int32_t);
  const char* wrong = problem(hipStreamCreateWithFlags(&stream, hipStreamNonBlocking));
  if (wrong == nullptr) wrong = problem(hipMalloc(&memory, bytes));
  if (wrong == nullptr) wrong = problem(hipMemsetAsync(memory, 0, bytes, stream));
  if (wrong == nullptr) wrong = problem(hipStreamSynchronize(stream));
  if (stream != nullptr) static_cast<void>(hipStreamDestroy(stream));
  static_cast<void>(hipThreadExchangeStreamCaptureMode(&mode));
  return {wrong, static_cast<int32_t*>(memory)};
}

}  // namespace

Device device() {
  int index = 0;
  if (const char* wrong = problem(hipGetDevice(&index))) return {wrong, 0, 0, 0, 0};
  static Memory<int, Device> devices;
  return devices.get(index, [&] { return describe(index); });
}

DeviceFacts device_facts(int index) {
  DeviceFacts facts{};
  hipDeviceProp_t properties;
  facts.problem = problem(hipGetDeviceProperties(&properties, index));
  if (facts.problem != nullptr) return facts;
  std::snprintf(facts.name, sizeof facts.name, "%s:%s", kVendor, properties.name);
  const double kilohertz = 1e3, bits = 8.0, both_edges = 2.0;
  facts.bandwidth = both_edges * kilohertz * attribute(hipDeviceAttributeMemoryClockRate, index) *
                    attribute(hipDeviceAttributeMemoryBusWidth, index) / bits;
  facts.multiplies = kilohertz * attribute(hipDeviceAttributeClockRate, index) *
                     attribute(hipDeviceAttributeMultiprocessorCount, index) *
                     multiplies_per_cycle(properties.major, properties.minor);
  return facts;
}

Residency residency(const Kernel& kernel) {
  static Memory<std::tuple<int, const void*>, Residency> kernels;
  return kernels.get({device().index, kernel.function}, [&] { return prepare(kernel); });
}

const char* launch(const Kernel& kernel, const void* params, void* stream) {
  const Residency ready = residency(kernel);
  if (ready.problem != nullptr) return ready.problem;
  if (kernel.blocks == 0) return nullptr;
  if (kernel.blocks > max_blocks(kernel.threads)) return "more blocks than one launch can have: use smaller inputs";
  void* arguments[] = {const_cast<void*>(params)};
  return problem(start(kernel.function, kernel.blocks, kernel.threads, kernel.shared_bytes, arguments,
                       static_cast<hipStream_t>(stream), device().major));
}

// Launches of one stream run one after the other, and so do the replays of a graph: a stream, and in a capture each stream of it,
// has counters of its own.
Arrivals arrivals(int64_t count, void* stream) {
  constexpr int64_t kLeast = 4096;
  hipStreamCaptureStatus status;
  unsigned long long capture = 0;
  const char* wrong = problem(hipStreamGetCaptureInfo(static_cast<hipStream_t>(stream), &status, &capture));
  if (wrong != nullptr) return {wrong, nullptr};
  if (status != hipStreamCaptureStatusActive) capture = 0;
  int64_t size = kLeast;
  while (size < count) size *= 2;
  static Memory<std::tuple<int, void*, unsigned long long, int64_t>, Arrivals> counters;
  return counters.get({device().index, stream, capture, size}, [&] { return allocate(size); });
}

}  // namespace fdpp::gpu
