// What a library of fdpp offers beside its operators. Each has one object of this class, which fdpp_library() returns;
// Python's module (csrc/python) calls it. A method refuses what it is given with std::invalid_argument.
#pragma once

#include <string>
#include <vector>

#include "common/dataflow.h"

namespace fdpp {

class Library {
 public:
  struct Features {
    std::string isa;                     // in use
    std::vector<std::string> available;  // best first
    std::string device;                  // as tables name it
  };

  // Linear layers. Devices have a number: that of the GPU, 0 for the CPU.
  virtual std::string device_name(int device) const;  // as tables name it; of a GPU, this starts its driver
  virtual int flat_gemm_configs(int device, DType dtype) const;
  virtual void set_table(const std::string& device_name, const std::vector<DataflowTable::Row>& rows) const;
  virtual void clear_tables() const;
  virtual Choice choice(int device, DType dtype, int64_t N, int64_t K, int64_t M) const;
  virtual void set_batch_invariant(bool on) const;

  // Of a GPU's library: what its kernels were compiled for.
  virtual std::string architectures() const;
  // Of the CPU's library. The bandwidth is bytes per second; without room for the buffer it throws std::bad_alloc.
  virtual Features cpu_features() const;
  virtual double measure_read_bandwidth(int64_t bytes, int repeats) const;
  // Of the simulation: the order in which later calls run the threads of a block.
  virtual void set_seed(uint64_t seed) const;

 protected:
  ~Library() = default;
};

}  // namespace fdpp

// Exports the object of a library.
#define FDPP_EXPORT_LIBRARY(object) \
  extern "C" __attribute__((visibility("default"))) const fdpp::Library* fdpp_library() { return &object; }
