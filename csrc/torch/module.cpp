// fdpp._core: host logic that Python wants, and the entry that loads the operators.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "common/split_plan.h"
#include "cpu/backend.h"
#include "cpu/cpu_features.h"
#include "torch/cpu_threads.h"
#include "torch/linear.h"

namespace py = pybind11;

namespace fdpp {

namespace {

DType dtype_from(const std::string& name) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    if (name == name_of(dtype)) return dtype;
  }
  throw py::value_error("dtype must be float32, bfloat16 or float16; got " + name);
}

Impl impl_from(const std::string& name) {
  for (const Impl impl : {Impl::gemv, Impl::flat_gemm, Impl::aten}) {
    if (name == name_of(impl)) return impl;
  }
  throw py::value_error("impl must be gemv, flat_gemm or aten; got " + name);
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = __VERSION__;
  info["torch_target"] = FDPP_TORCH_TARGET;
  info["backend"] = "cpu";
  return info;
}

py::dict cpu_features() {
  std::vector<std::string> available;
  for (const cpu::Kernels* table : cpu::available_kernels()) available.push_back(table->name);
  py::dict features;
  features["isa"] = cpu::kernels().name;
  features["available"] = available;
  features["device"] = cpu::device_name();
  return features;
}

// Rows: (dtype, N, K, M, impl, config).
using PythonRow = std::tuple<std::string, int64_t, int64_t, int64_t, std::string, int>;

void set_linear_table(const std::vector<PythonRow>& rows) {
  std::vector<DataflowTable::Row> parsed;
  for (const auto& [dtype, N, K, M, impl, config] : rows) {
    const Impl kind = impl_from(impl);
    const int configs = kind == Impl::flat_gemm ? cpu::kernels().flat_gemm_configs(dtype_from(dtype)) : 0;
    if (config < -1 || config >= std::max(configs, 0)) {
      throw py::value_error("config of " + impl + " must be -1 or below " + std::to_string(configs) + "; got " +
                            std::to_string(config));
    }
    if (kind == Impl::flat_gemm && M > 64) {
      throw py::value_error("flat_gemm serves M up to 64; got " + std::to_string(M));
    }
    parsed.push_back({dtype_from(dtype), N, K, M, kind, config});
  }
  set_cpu_table(std::make_shared<const DataflowTable>(parsed));
}

py::dict linear_choice(const std::string& dtype, int64_t N, int64_t K, int64_t M) {
  const Choice choice = choose_cpu(dtype_from(dtype), N, K, M);
  py::dict result;
  result["impl"] = name_of(choice.impl);
  result["config"] = choice.config;
  result["source"] = choice.measured ? "table" : "rule";
  return result;
}

double measure_read_bandwidth(int64_t num_bytes, int repeats) {
  if (num_bytes <= 0 || repeats <= 0) throw py::value_error("num_bytes and repeats must be positive");
  py::gil_scoped_release release;
  return cpu::measure_read_bandwidth(cpu::kernels(), num_bytes, repeats, torch_threads());
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  cpu::kernels();  // a wrong FDPP_CPU_ISA fails here, at import
  m.def("build_info", &build_info, "How the library was built.");
  m.def("cpu_features", &cpu_features, "The instruction set in use, those available, and the device name of tables.");
  m.def(
      "flat_gemm_configs",
      [](const std::string& dtype) { return cpu::kernels().flat_gemm_configs(dtype_from(dtype)); },
      py::arg("dtype") = "float32", "Number of tile configurations of flat_gemm.");
  m.def("set_linear_table", &set_linear_table, py::arg("rows"),
        "Replaces the dataflow table: rows of (dtype, N, K, M, impl, config).");
  m.def("linear_choice", &linear_choice, py::arg("dtype"), py::arg("N"), py::arg("K"), py::arg("M"),
        "What linear does for a shape: impl, config, and whether a table row or the rule says so.");
  m.def("plan_splits", &plan_splits, py::arg("units"), py::arg("max_keys"), py::arg("workers"), py::arg("min_keys"),
        "Number of KV splits of decode_attention.");
  m.def("measure_read_bandwidth", &measure_read_bandwidth, py::arg("num_bytes"), py::arg("repeats"),
        "Bytes per second that torch's threads read from memory, best of `repeats` passes.");
}

}  // namespace fdpp
