// The device, its kernels' residency, launches and counters: what all launchers share.
#include "cuda/arch.h"
#include "cuda/device.h"

#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "gpu/launch.h"

namespace fdpp::gpu {
namespace {

// What went wrong, or null. Clears the sticky error, so that a later cudaGetLastError does not report it.
const char* problem(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  static_cast<void>(cudaGetLastError());
  return cudaGetErrorString(error);
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  return problem(cudaDeviceGetAttribute(&value, which, device)) == nullptr ? value : 0;
}

// While an `Uncaptured` lives, calls that are illegal during graph capture (cudaMalloc, ...) do not break the capture.
class Uncaptured {
 public:
  Uncaptured() : wrong_(problem(cudaThreadExchangeStreamCaptureMode(&mode_))) {}
  ~Uncaptured() {
    if (wrong_ == nullptr) static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_));
  }
  Uncaptured(const Uncaptured&) = delete;
  const char* wrong() const { return wrong_; }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
  const char* wrong_;
};

// What is computed once and kept, unless it went wrong.
template <typename Key, typename Value>
class Memo {
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

Device describe(int index) {
  const auto value = [&](cudaDeviceAttr which) { return attribute(which, index); };
  const double kilohertz = 1e3, bits = 8.0;
  const int major = value(cudaDevAttrComputeCapabilityMajor);
  const int minor = value(cudaDevAttrComputeCapabilityMinor);
  Device device{};
  device.index = index;
  device.warp_size = value(cudaDevAttrWarpSize);
  if (device.warp_size == 0) device.problem = "the device does not answer";
  device.multiprocessors = value(cudaDevAttrMultiProcessorCount);
  device.shared_bytes = value(kSharedBytesOfBlock);
  device.facts.bandwidth = transfers_per_clock(major, minor) * kilohertz * value(cudaDevAttrMemoryClockRate) *
                           value(cudaDevAttrGlobalMemoryBusWidth) / bits;
  device.facts.multiplies =
      kilohertz * value(cudaDevAttrClockRate) * device.multiprocessors * multiplies_per_cycle(major, minor);
  return device;
}

Residency prepare(const Kernel& kernel) {
  if (kernel.function == nullptr) return {"there is no kernel for these parameters", 0, false};
  const Uncaptured uncaptured;
  const char* wrong = uncaptured.wrong();
  // A block has 48 KiB unless its kernel asks for more.
  if (wrong == nullptr && kernel.shared_bytes > 48 * 1024) {
    wrong = problem(
        cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared_bytes));
  }
  int blocks = 0;
  if (wrong == nullptr) {
    wrong = problem(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel.function, kernel.threads,
                                                                  static_cast<size_t>(kernel.shared_bytes)));
  }
  cudaFuncAttributes attributes{};
  if (wrong == nullptr) wrong = problem(cudaFuncGetAttributes(&attributes, kernel.function));
  if (wrong == nullptr && blocks == 0) wrong = "the kernel wants more shared memory or registers than the device has";
  if (wrong == nullptr) wrong = problem(prefer_shared_memory(kernel.function, blocks, kernel.shared_bytes));
  return {wrong, blocks, waits_for_producers(attributes.ptxVersion)};
}

// Memory of zeros that no capture of a graph takes for its own; the zeros are there when this returns.
Arrivals allocate(int64_t count) {
  const Uncaptured uncaptured;
  if (uncaptured.wrong() != nullptr) return {uncaptured.wrong(), nullptr};
  void* memory = nullptr;
  cudaStream_t stream = nullptr;
  const size_t bytes = static_cast<size_t>(count) * sizeof(int32_t);
  const char* wrong = problem(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  if (wrong == nullptr) wrong = problem(cudaMalloc(&memory, bytes));
  if (wrong == nullptr) wrong = problem(cudaMemsetAsync(memory, 0, bytes, stream));
  if (wrong == nullptr) wrong = problem(cudaStreamSynchronize(stream));
  if (stream != nullptr) static_cast<void>(cudaStreamDestroy(stream));
  return {wrong, static_cast<int32_t*>(memory)};
}

// Counters of captures. Those of a graph are its own until it and its instances are gone; then another capture may have
// them.
class GraphCounters {
 public:
  using Key = std::tuple<int, unsigned long long, unsigned long long, int64_t>;  // device, stream, capture, count

  // The runtime is not called under the lock: it may wait for the thread that calls give_back(), which takes the lock.
  Arrivals get(const Key& key, cudaGraph_t graph) {
    if (int32_t* counters = find(key)) return {nullptr, counters};
    int32_t* spare = take_spare(kind(key));
    Arrivals arrivals = spare != nullptr ? Arrivals{nullptr, spare} : allocate(std::get<3>(key));
    if (arrivals.problem != nullptr) return arrivals;
    arrivals.problem = problem(when_gone(graph, give_back, new Loan{this, key, arrivals.counters}));
    const std::lock_guard lock(mutex_);
    if (arrivals.problem == nullptr) lent_.emplace(key, arrivals.counters);
    return arrivals;
  }

 private:
  using Kind = std::tuple<int, int64_t>;  // device, count
  struct Loan {
    GraphCounters* owner;
    Key key;
    int32_t* counters;
  };

  static Kind kind(const Key& key) { return {std::get<0>(key), std::get<3>(key)}; }

  static void give_back(void* argument) {
    const std::unique_ptr<Loan> loan(static_cast<Loan*>(argument));
    const std::lock_guard lock(loan->owner->mutex_);
    loan->owner->lent_.erase(loan->key);
    loan->owner->spare_[kind(loan->key)].push_back(loan->counters);
  }

  int32_t* find(const Key& key) {
    const std::lock_guard lock(mutex_);
    const auto found = lent_.find(key);
    return found != lent_.end() ? found->second : nullptr;
  }

  int32_t* take_spare(const Kind& kind) {
    const std::lock_guard lock(mutex_);
    std::vector<int32_t*>& spare = spare_[kind];
    if (spare.empty()) return nullptr;
    int32_t* counters = spare.back();
    spare.pop_back();
    return counters;
  }

  std::mutex mutex_;
  std::map<Key, int32_t*> lent_;
  std::map<Kind, std::vector<int32_t*>> spare_;
};

}  // namespace

Device device(int index) {
  static Memo<int, Device> devices;
  return devices.get(index, [&] { return describe(index); });
}

DeviceName device_name(int index) {
  DeviceName name{};
  cudaDeviceProp properties;
  name.problem = problem(cudaGetDeviceProperties(&properties, index));
  if (name.problem == nullptr) std::snprintf(name.text, sizeof name.text, "%s:%s", kVendor, properties.name);
  return name;
}

Residency residency(const Kernel& kernel, int device) {
  static Memo<std::tuple<int, const void*>, Residency> kernels;
  return kernels.get({device, kernel.function}, [&] { return prepare(kernel); });
}

const char* launch(const Kernel& kernel, const void* params, void* stream, int device) {
  const Residency ready = residency(kernel, device);
  if (ready.problem != nullptr) return ready.problem;
  if (kernel.blocks == 0) return nullptr;
  if (kernel.blocks > max_blocks(kernel.threads)) return "more blocks than one launch can have: use smaller inputs";
  void* arguments[] = {const_cast<void*>(params)};
  return problem(start(kernel.function, kernel.blocks, kernel.threads, kernel.shared_bytes, arguments,
                       static_cast<cudaStream_t>(stream), ready.overlaps));
}

// Launches of one stream run one after the other, and so do the replays of a graph: a stream, and in a capture each
// stream of it, has counters of its own. A capturing stream does not tell its id, but its handle is its own until the
// capture ends.
Arrivals arrivals(int64_t count, void* stream, int device) {
  constexpr int64_t kLeast = 4096;
  unsigned long long capture = 0, id = reinterpret_cast<unsigned long long>(stream);
  cudaGraph_t graph = nullptr;
  const char* wrong = problem(capture_of(static_cast<cudaStream_t>(stream), &capture, &graph));
  if (wrong == nullptr && graph == nullptr) wrong = problem(stream_id(static_cast<cudaStream_t>(stream), &id));
  if (wrong != nullptr) return {wrong, nullptr};
  int64_t size = kLeast;
  while (size < count) size *= 2;
  static GraphCounters& captured = *new GraphCounters;  // never destroyed: graphs may outlive what is static
  if (graph != nullptr) return captured.get({device, id, capture, size}, graph);
  static Memo<std::tuple<int, unsigned long long, int64_t>, Arrivals> counters;
  return counters.get({device, id, size}, [&] { return allocate(size); });
}

}  // namespace fdpp::gpu
