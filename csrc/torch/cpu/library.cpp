// The CPU's library: the schemas of torch.ops.fdpp.*, which every backend implements, and what it offers beside them.
#include "common/library.h"

#include <torch/csrc/stable/library.h>

#include "cpu/backend.h"
#include "cpu/cpu_features.h"
#include "torch/arguments/schemas.h"
#include "torch/cpu/cpu_threads.h"

namespace fdpp {

namespace {

STABLE_TORCH_LIBRARY(fdpp, m) { schemas::define(m); }

class CpuLibrary final : public Library {
 public:
  Features cpu_features() const override {
    Features found{cpu::kernels().name, {}, cpu::device_name()};
    for (const cpu::Kernels* table : cpu::available_kernels()) found.available.push_back(table->name);
    return found;
  }

  double measure_read_bandwidth(int64_t bytes, int repeats) const override {
    return cpu::measure_read_bandwidth(cpu::kernels(), bytes, repeats, torch_threads());
  }
};

const CpuLibrary library{};

}  // namespace

}  // namespace fdpp

FDPP_EXPORT_LIBRARY(fdpp::library)
