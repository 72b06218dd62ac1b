// Host logic that Python wants, as plain C functions (fdpp/_core.py calls them through ctypes). No Python header is
// needed to build, and one library serves every Python version. Nothing here throws; texts live until the thread's next
// call.
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/split_plan.h"
#include "cpu/backend.h"
#include "cpu/cpu_features.h"
#include "torch/cpu/cpu_threads.h"

#define FDPP_API extern "C" __attribute__((visibility("default")))

namespace fdpp {

namespace {

thread_local std::string text;

const char* keep(std::string value) {
  text = std::move(value);
  return text.c_str();
}

}  // namespace

// "<compiler>;<torch's ABI version>"
FDPP_API const char* fdpp_build_info() { return __VERSION__ ";" FDPP_TORCH_TARGET; }

// "ok;<isa>;<device>;<available isa>,<available isa>,..." or "error;<why>"
FDPP_API const char* fdpp_cpu_features() {
  try {
    std::string available;
    for (const cpu::Kernels* table : cpu::available_kernels()) {
      available += available.empty() ? table->name : std::string(",") + table->name;
    }
    return keep(std::string("ok;") + cpu::kernels().name + ";" + cpu::device_name() + ";" + available);
  } catch (const std::exception& error) {
    return keep(std::string("error;") + error.what());
  }
}

FDPP_API int fdpp_plan_splits(int64_t units, int64_t max_keys, int workers, int min_keys) {
  return plan_splits(units, max_keys, workers, min_keys);
}

// 1 when the system was asked to back the whole pages within [address, address + bytes) with huge ones. A hint: memory
// stays as it is where the system has none.
FDPP_API int fdpp_advise_huge_pages(void* address, int64_t bytes) {
#if defined(__linux__)
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(address) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(address) + static_cast<uintptr_t>(bytes)) / page * page;
  return end > begin && madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE) == 0;
#else
  (void)address, (void)bytes;
  return 0;
#endif
}

// Bytes per second; negative when the buffer cannot be had.
FDPP_API double fdpp_measure_read_bandwidth(int64_t bytes, int repeats) {
  try {
    return cpu::measure_read_bandwidth(cpu::kernels(), bytes, repeats, torch_threads());
  } catch (const std::exception&) {
    return -1.0;
  }
}

}  // namespace fdpp
