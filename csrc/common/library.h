// What a library of fdpp offers beside its operators. Each has one object of this class, which fdpp_library() returns;
// Python's module (csrc/python) calls it. A method refuses what it is given with std::invalid_argument.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/dataflow.h"
#include "common/params.h"

namespace fdpp {

// Operators of one thread, recorded to be replayed.
class RecordedOperators {
 public:
  virtual ~RecordedOperators() = default;
  // Between these, operators that this thread calls are recorded instead of run. Of a call that cannot be recorded
  // nothing is: it runs.
  virtual void begin() = 0;
  virtual void end() = 0;
  virtual int64_t size() const = 0;  // pieces of work that were recorded
  // What a step has beside fdpp's operators, on contiguous memory that must live as long.
  virtual void copy(void* to, const void* from, int64_t bytes) = 0;
  virtual void zero(void* to, int64_t bytes) = 0;
  virtual void add(int32_t* to, const int32_t* from, int64_t count) = 0;
  virtual void clamp_min(int64_t* to, const int64_t* from, int64_t least, int64_t count) = 0;
  virtual void gather_rows(void* to, const void* table, const int64_t* rows, int64_t count, int64_t row_bytes) = 0;
  virtual void argmax(const ArgmaxParams& params) = 0;
  virtual void is_finite(bool* to, DType dtype, const void* from, int64_t count) = 0;
  virtual void where(int64_t* to, const bool* condition, const int64_t* from, int64_t other, int64_t count) = 0;
  virtual void replay() = 0;                    // with torch's number of threads
  virtual std::array<double, 3> profile() = 0;  // replays, and says how long weights, attention and the rest took
};

class Library {
 public:
  struct Features {
    std::string isa;                     // in use
    std::vector<std::string> available;  // best first
    std::string device;                  // as tables name it
  };

  // Linear layers. Devices have a number: that of the GPU, 0 for the CPU.
  virtual std::string device_name(int device) const;  // as tables name it; of a GPU, this starts its driver
  virtual int flat_gemm_configs(int device, DType dtype, int format) const;
  virtual void set_table(const std::string& device_name, const std::vector<DataflowTable::Row>& rows) const;
  virtual void clear_tables() const;
  virtual Choice choice(int device, DType dtype, int64_t N, int64_t K, int64_t M, int format) const;
  virtual void force_packed_choice(const std::optional<Choice>& choice) const;  // see common/linear_choice.h
  virtual void set_batch_invariant(bool on) const;
  virtual void set_tokens_per_row(int64_t count) const;  // of this thread: see common/linear_choice.h

  // Of a GPU's library: what its kernels were compiled for.
  virtual std::string architectures() const;
  // Of the CPU's library. The bandwidth is bytes per second; without room for the buffer it throws std::bad_alloc.
  virtual Features cpu_features() const;
  virtual double measure_read_bandwidth(int64_t bytes, int repeats) const;
  virtual std::unique_ptr<RecordedOperators> record() const;
  // Packed weights (weight_format.h): the bytes of a layout, and rows of a file packed in one format, which gives the
  // number of damaged blocks.
  virtual int64_t packed_bytes(const std::string& layout, int64_t K) const;
  virtual int64_t pack_weight(const std::string& format, const uint8_t* const* rows, int64_t count, int64_t K,
                              uint8_t* to) const;
  // Of the simulation: the order in which later calls run the threads of a block.
  virtual void set_seed(uint64_t seed) const;

 protected:
  ~Library() = default;
};

}  // namespace fdpp

// Exports the object of a library.
#define FDPP_EXPORT_LIBRARY(object) \
  extern "C" __attribute__((visibility("default"))) const fdpp::Library* fdpp_library() { return &object; }
