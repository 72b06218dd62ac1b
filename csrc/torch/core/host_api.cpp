// Host logic that Python wants, as plain C functions (fdpp/_core.py calls them through ctypes). No Python header is needed to
// build, and one library serves every Python version. Nothing here throws; texts live until the thread's next call.
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/split_plan.h"
#include "cpu/backend.h"
#include "cpu/cpu_features.h"
#include "torch/core/cpu_threads.h"
#include "torch/core/linear.h"

#define FDPP_API extern "C" __attribute__((visibility("default")))

namespace fdpp {

namespace {

thread_local std::string text;

const char* keep(std::string value) {
  text = std::move(value);
  return text.c_str();
}

bool known(int64_t dtype) { return dtype >= 0 && dtype <= static_cast<int64_t>(DType::f16); }

// What is wrong with a row of a table; empty: nothing.
std::string problem_of(const DataflowTable::Row& row) {
  const int configs = row.impl == Impl::flat_gemm ? cpu::kernels().flat_gemm_configs(row.dtype) : 0;
  if (row.config != -1 && (row.config < 0 || row.config >= configs)) {
    return std::string("config of ") + name_of(row.impl) + " must be -1 or below " + std::to_string(configs) +
           "; got " + std::to_string(row.config);
  }
  if (row.impl == Impl::flat_gemm && row.M > kMaxFlatRows) {
    return "flat_gemm serves M up to " + std::to_string(kMaxFlatRows) + "; got " + std::to_string(row.M);
  }
  return "";
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

// Number of configurations of flat_gemm for a dtype (numbered as in common/dtype.h), -1 for an unknown one.
FDPP_API int fdpp_flat_gemm_configs(int64_t dtype) {
  try {
    return known(dtype) ? cpu::kernels().flat_gemm_configs(static_cast<DType>(dtype)) : -1;
  } catch (const std::exception&) {
    return -1;
  }
}

// Replaces the dataflow table. `rows` [count][6]: dtype, N, K, M, implementation, config, numbered as in common/. Returns
// what is wrong with it, null when nothing is.
FDPP_API const char* fdpp_set_linear_table(const int64_t* rows, int64_t count) {
  try {
    std::vector<DataflowTable::Row> parsed;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t* cell = rows + 6 * i;
      if (!known(cell[0]) || cell[4] < 0 || cell[4] > static_cast<int64_t>(Impl::aten)) {
        return keep("unknown dtype or implementation");
      }
      parsed.push_back({static_cast<DType>(cell[0]), cell[1], cell[2], cell[3], static_cast<Impl>(cell[4]),
                        static_cast<int>(cell[5])});
      const std::string problem = problem_of(parsed.back());
      if (!problem.empty()) return keep(problem);
    }
    set_cpu_table(std::make_unique<const DataflowTable>(parsed));
    return nullptr;
  } catch (const std::exception& error) {
    return keep(error.what());
  }
}

// What linear does for a shape: implementation, config, 1 when a table row says so.
FDPP_API void fdpp_linear_choice(int64_t dtype, int64_t N, int64_t K, int64_t M, int64_t* choice) {
  const Choice found = choose_cpu(static_cast<DType>(dtype), N, K, M);
  choice[0] = static_cast<int64_t>(found.impl);
  choice[1] = found.config;
  choice[2] = found.measured;
}

FDPP_API int fdpp_plan_splits(int64_t units, int64_t max_keys, int workers, int min_keys) {
  return plan_splits(units, max_keys, workers, min_keys);
}

// 1 when the system was asked to back the whole pages within [address, address + bytes) with huge ones. A hint: memory stays
// as it is where the system has none.
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
