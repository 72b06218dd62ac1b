// fdpp._host: the host functions of fdpp's libraries, typed, for Python. It links against none of them and knows no
// torch: a library is opened by its path, and answers through the object that it exports (common/library.h).
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "common/head_dims.h"
#include "common/library.h"
#include "common/linear_choice.h"
#include "common/softmax_state.h"

namespace py = pybind11;

namespace {

using fdpp::Choice;
using fdpp::DataflowTable;
using fdpp::DType;
using fdpp::Impl;

constexpr std::array kDTypes = {DType::f32, DType::bf16, DType::f16};
constexpr std::array kImpls = {Impl::gemv, Impl::flat_gemm, Impl::aten};
constexpr const char* kSources[] = {"table", "rule", "batch_invariant"};

template <typename Values>
auto parse(const char* what, const std::string& name, const Values& values) {
  std::string names;
  for (const auto value : values) {
    if (name == name_of(value)) return value;
    names += (names.empty() ? "" : ", ") + std::string(name_of(value));
  }
  throw std::invalid_argument(what + (" must be one of " + names) + "; got '" + name + "'");
}

class LoadedLibrary {
 public:
  explicit LoadedLibrary(const std::string& path) {
    void* const handle = dlopen(path.c_str(), RTLD_NOW);  // stays open: operators live in it
    if (handle == nullptr) throw py::import_error(dlerror());
    void* const symbol = dlsym(handle, "fdpp_library");
    if (symbol == nullptr) throw py::import_error(path + " is no library of this version of fdpp");
    library_ = reinterpret_cast<const fdpp::Library* (*)()>(symbol)();
  }

  const fdpp::Library* operator->() const { return library_; }

 private:
  const fdpp::Library* library_;
};

using Recorded = fdpp::RecordedOperators;
using Address = uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// The number of a format of packed weights; the empty name stands for plain ones.
int parse_format(const std::string& name) {
  if (name.empty()) return fdpp::kPlain;
  for (int i = 0; i < fdpp::kNumWeightFormats; ++i) {
    if (name == fdpp::kWeightFormats[i].name) return i;
  }
  throw std::invalid_argument("there is no format '" + name.substr(0, 80) + "'");
}

using TableRow = std::tuple<std::string, int64_t, int64_t, int64_t, std::string, int, std::string>;

void set_table(const LoadedLibrary& library, const std::string& device_name, const std::vector<TableRow>& rows) {
  std::vector<DataflowTable::Row> parsed;
  parsed.reserve(rows.size());
  for (const auto& [dtype, N, K, M, impl, config, format] : rows) {
    parsed.push_back(
        {parse("dtype", dtype, kDTypes), N, K, M, parse("impl", impl, kImpls), config, parse_format(format)});
  }
  library->set_table(device_name, parsed);
}

py::dict choice(const LoadedLibrary& library, const std::string& dtype, int64_t N, int64_t K, int64_t M, int index,
                const std::string& format) {
  const Choice found = library->choice(index, parse("dtype", dtype, kDTypes), N, K, M, parse_format(format));
  py::dict result;
  result["impl"] = name_of(found.impl);
  result["config"] = found.config;
  result["source"] = kSources[static_cast<int>(found.source)];
  return result;
}

py::dict cpu_features(const LoadedLibrary& library) {
  const fdpp::Library::Features found = library->cpu_features();
  py::dict result;
  result["isa"] = found.isa;
  result["available"] = found.available;
  result["device"] = found.device;
  return result;
}

double measure_read_bandwidth(const LoadedLibrary& library, int64_t num_bytes, int repeats) {
  if (num_bytes < 1 || repeats < 1) {
    throw std::invalid_argument("num_bytes and repeats must be at least 1; got " + std::to_string(num_bytes) + ", " +
                                std::to_string(repeats));
  }
  return library->measure_read_bandwidth(num_bytes, repeats);
}

bool advise_huge_pages(uintptr_t address, int64_t num_bytes) {
#if defined(__linux__)
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (address + page - 1) / page * page;
  const uintptr_t end = (address + static_cast<uintptr_t>(num_bytes)) / page * page;
  return end > begin && madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE) == 0;
#else
  (void)address, (void)num_bytes;
  return false;
#endif
}

// How far below and above its reference a logit may lie before the reference moves, in log2 units.
py::dict guards() {
  py::dict result;
  result["wide"] = py::make_tuple(fdpp::WideGuard::kLow, fdpp::WideGuard::kHigh);
  result["narrow"] = py::make_tuple(fdpp::NarrowGuard::kLow, fdpp::NarrowGuard::kHigh);
  return result;
}

py::dict weight_formats() {
  using namespace py::literals;
  py::dict result;
  for (const fdpp::FormatInfo& info : fdpp::kWeightFormats) {
    const std::vector<int> codebook(info.codebook, info.codebook + (info.codebook != nullptr ? 16 : 0));
    result[info.name] =
        py::dict("file_bytes"_a = info.file_bytes, "bits"_a = info.bits, "zero"_a = info.zero,
                 "codebook"_a = py::tuple(py::cast(codebook)), "scale_dtype"_a = name_of(info.scale_dtype),
                 "has_min"_a = info.has_min, "has_zero"_a = info.has_zero, "groups"_a = info.groups,
                 "sub_scales"_a = info.sub_scales);
  }
  return result;
}

py::dict build_info() {
  py::dict result;
  result["compiler"] = __VERSION__;
  result["torch_target"] = FDPP_TORCH_TARGET;
  return result;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  using namespace py::literals;
  m.doc() = "The host functions of fdpp's compiled libraries. Loading them is the work of fdpp.library.";
  m.attr("HEAD_DIMS") = py::tuple(py::cast(std::vector<int>(std::begin(fdpp::kHeadDims), std::end(fdpp::kHeadDims))));
  m.attr("GUARDS") = guards();
  m.attr("WEIGHT_FORMATS") = weight_formats();
  m.def("build_info", &build_info, "The ``compiler`` of this build, and the version of torch's ABI that it targets.");
  m.def("advise_huge_pages", &advise_huge_pages, "address"_a, "num_bytes"_a,
        "Ask the system to back the whole pages of memory that nobody has touched yet with huge ones. False where it "
        "cannot; the memory stays as it is.");
  py::class_<Recorded>(
      m, "RecordedOperators",
      "Operators of the CPU that one thread calls, to be replayed on the same tensors, which must live as long.")
      .def("begin", &Recorded::begin,
           "From now on, operators that this thread calls are recorded instead of run. One that cannot be recorded "
           "runs.")
      .def("end", &Recorded::end, "Operators run again.")
      .def("__len__", &Recorded::size, "Pieces of work that were recorded.")
      .def(
          "copy",
          [](Recorded& self, Address to, Address from, int64_t bytes) {
            self.copy(at<void>(to), at<void>(from), bytes);
          },
          "to"_a, "from_"_a, "bytes"_a, "Record a copy. Like all that follow, it takes addresses of contiguous memory.")
      .def(
          "zero", [](Recorded& self, Address to, int64_t bytes) { self.zero(at<void>(to), bytes); }, "to"_a, "bytes"_a,
          "Record that memory is set to 0.")
      .def(
          "add",
          [](Recorded& self, Address to, Address from, int64_t count) {
            self.add(at<int32_t>(to), at<int32_t>(from), count);
          },
          "to"_a, "from_"_a, "count"_a, "Record ``to += from`` of int32.")
      .def(
          "clamp_min",
          [](Recorded& self, Address to, Address from, int64_t least, int64_t count) {
            self.clamp_min(at<int64_t>(to), at<int64_t>(from), least, count);
          },
          "to"_a, "from_"_a, "least"_a, "count"_a, "Record ``to = max(from, least)`` of int64.")
      .def(
          "gather_rows",
          [](Recorded& self, Address to, Address table, Address rows, int64_t count, int64_t row_bytes) {
            self.gather_rows(at<void>(to), at<void>(table), at<int64_t>(rows), count, row_bytes);
          },
          "to"_a, "table"_a, "rows"_a, "count"_a, "row_bytes"_a, "Record a look-up of rows, whose numbers are int64.")
      .def(
          "argmax",
          [](Recorded& self, const std::string& dtype, Address x, int64_t rows, int64_t columns, Address values,
             Address indices) {
            self.argmax({parse("dtype", dtype, kDTypes), rows, columns, columns, at<void>(x), at<void>(values),
                         at<int64_t>(indices)});
          },
          "dtype"_a, "x"_a, "rows"_a, "columns"_a, "values"_a, "indices"_a,
          "Record the search for the largest element of each row, and where it comes first. NaN is the largest.")
      .def(
          "is_finite",
          [](Recorded& self, Address to, const std::string& dtype, Address from, int64_t count) {
            self.is_finite(at<bool>(to), parse("dtype", dtype, kDTypes), at<void>(from), count);
          },
          "to"_a, "dtype"_a, "from_"_a, "count"_a, "Record which elements are neither NaN nor infinite.")
      .def(
          "where",
          [](Recorded& self, Address to, Address condition, Address from, int64_t other, int64_t count) {
            self.where(at<int64_t>(to), at<bool>(condition), at<int64_t>(from), other, count);
          },
          "to"_a, "condition"_a, "from_"_a, "other"_a, "count"_a,
          "Record ``to = from where condition else other`` of int64.")
      .def("replay", &Recorded::replay, py::call_guard<py::gil_scoped_release>(),
           "Do what was recorded, in order, with torch's number of threads.")
      .def("profile", &Recorded::profile, py::call_guard<py::gil_scoped_release>(),
           "Do it, and return the seconds that products with weights, attention, and everything else took.");
  py::class_<LoadedLibrary>(
      m, "Library",
      "A compiled library of fdpp. Devices have a number: that of the GPU, 0 for the CPU. What is "
      "refused raises a ValueError.")
      .def(py::init<const std::string&>(), "path"_a, "Raises ImportError for a file that is none.")
      .def(
          "device_name", [](const LoadedLibrary& library, int index) { return library->device_name(index); },
          "index"_a = 0, py::call_guard<py::gil_scoped_release>(),
          "The name by which dataflow tables know a device. Of a GPU, this starts its driver.")
      .def(
          "flat_gemm_configs",
          [](const LoadedLibrary& library, const std::string& dtype, std::optional<int> index,
             const std::string& format) {
            return library->flat_gemm_configs(index.value_or(fdpp::kAnyDevice), parse("dtype", dtype, kDTypes),
                                              parse_format(format));
          },
          "dtype"_a, "index"_a = py::none(), "format"_a = "",
          "Number of configurations of ``flat_gemm`` for a dtype, and a format of packed weights, on a device, or the "
          "most that any device has.")
      .def("set_table", &set_table, "device_name"_a, "rows"_a,
           "Replace the dataflow table of a device: rows of (dtype, N, K, M, impl, config, format). Where a row names "
           "something unknown, the table in force stays.")
      .def(
          "clear_tables", [](const LoadedLibrary& library) { library->clear_tables(); },
          "Forget the dataflow tables of all devices.")
      .def("choice", &choice, "dtype"_a, "N"_a, "K"_a, "M"_a, "index"_a = 0, "format"_a = "",
           "What ``linear`` does for a shape, or ``quantized_linear`` for one of a format: ``impl``, ``config`` of "
           "``flat_gemm`` (-1 elsewhere), and the ``source`` of the choice: table, rule or batch_invariant.")
      .def(
          "force_packed_choice",
          [](const LoadedLibrary& library, const std::optional<std::string>& impl, int config) {
            std::optional<Choice> choice;
            if (impl) choice = {parse("impl", *impl, kImpls), config, fdpp::Source::table};
            library->force_packed_choice(choice);
          },
          "impl"_a, "config"_a = -1,
          "Let ``quantized_linear``, called from this thread, take an implementation, until None is given.")
      .def(
          "set_batch_invariant", [](const LoadedLibrary& library, bool on) { library->set_batch_invariant(on); },
          "on"_a, "Whether ``linear`` takes one implementation and one split for every M.")
      .def(
          "set_tokens_per_row", [](const LoadedLibrary& library, int64_t count) { library->set_tokens_per_row(count); },
          "count"_a, "Let ``linear``, called from this thread, choose as for M / count rows.")
      .def(
          "architectures", [](const LoadedLibrary& library) { return library->architectures(); },
          "What the kernels of a GPU's library were compiled for; empty for others.")
      .def(
          "cpu_features", &cpu_features,
          "Of the CPU's library: the instruction set in use (``isa``), those ``available``, and the ``device`` name of "
          "dataflow tables.")
      .def("measure_read_bandwidth", &measure_read_bandwidth, "num_bytes"_a, "repeats"_a,
           py::call_guard<py::gil_scoped_release>(),
           "Bytes per second that torch's threads read from memory, best of ``repeats`` passes over ``num_bytes``. "
           "Raises MemoryError where there is no room for the buffer.")
      .def(
          "record", [](const LoadedLibrary& library) { return library->record(); },
          "Of the CPU's library: an empty recording.")
      .def(
          "packed_bytes",
          [](const LoadedLibrary& library, const std::string& layout, int64_t columns) {
            return library->packed_bytes(layout, columns);
          },
          "layout"_a, "columns"_a, "Of the CPU's library: the bytes of a packed weight.")
      .def(
          "pack_weight",
          [](const LoadedLibrary& library, const std::string& format, Address rows, int64_t count, int64_t columns,
             Address to) {
            return library->pack_weight(format, at<const uint8_t*>(rows), count, columns, at<uint8_t>(to));
          },
          "format"_a, "rows"_a, "count"_a, "columns"_a, "to"_a, py::call_guard<py::gil_scoped_release>(),
          "Of the CPU's library: pack rows as they lie in a file. ``rows`` is the address of their addresses, ``to`` "
          "that of ``packed_bytes`` bytes. Returns how many blocks are damaged: their scales are not finite.")
      .def(
          "set_seed", [](const LoadedLibrary& library, uint64_t seed) { library->set_seed(seed); }, "seed"_a,
          "Of the simulation: the order in which later calls run the threads of a block.");
}
