// The heuristic dataflow (FlashDecoding++, section 5): which implementation of y = x W^T a shape takes.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/dtype.h"

namespace fdpp {

enum class Impl : int { gemv, flat_gemm, aten };  // ImplA, ImplB, ImplC

inline const char* name_of(Impl impl) {
  switch (impl) {
    case Impl::gemv: return "gemv";
    case Impl::flat_gemm: return "flat_gemm";
    case Impl::aten: return "aten";
  }
  return "?";
}

// Why: a row of a table, the rule for shapes without one, or the wish for one implementation whatever M is.
enum class Source : int { table, rule, batch_invariant };

struct Choice {
  Impl impl;
  int config;  // of flat_gemm, -1 for its default; -1 elsewhere
  Source source;
};

constexpr int kPlain = -1;  // a weight in the dtype of x; otherwise the number of its WeightFormat

// Rows measured on one device. For each (dtype, format, N, K) the choices at increasing M.
class DataflowTable {
 public:
  struct Row {
    DType dtype;
    int64_t N, K, M;
    Impl impl;
    int config;
    int format = kPlain;
  };

  explicit DataflowTable(const std::vector<Row>& rows);

  // The choice at the smallest measured M that is not below the given one; none beyond the largest measured M, and for
  // shapes that were never measured.
  std::optional<Choice> find(DType dtype, int64_t N, int64_t K, int64_t M, int format = kPlain) const;

 private:
  struct Step {
    int64_t M;
    Impl impl;
    int config;
  };
  std::map<std::tuple<int, int, int64_t, int64_t>, std::vector<Step>> steps_;
};

// The rules for shapes without a measurement.
//
// On a processor: the GEMV reads the weights as they lie in memory, the fastest way, as long as the rows of x that meet
// them have room in registers and in the L1 cache; the flat GEMM stays bound by memory until its arithmetic, which
// grows with M, takes longer than the read; from there on the vendor's blocked GEMM wins. Where that is was measured
// (fdpp/dataflow_tables). It is later where the processor multiplies no 16-bit types; such a one has half as many
// registers.
Choice cpu_rule(DType dtype, int64_t K, int64_t M, bool half_gemm_is_slow = false);

// On a GPU, from what its maker states.
//
// A to B, the paper's M1: the GEMV multiplies on the vector units. For each weight it spends M multiplications, M / 2
// conversions of x, which two rows of weights share, one conversion of the weight, and some for loads and addresses:
// 1.6 (M + 1) instructions, as counted in machine code (3.0 at M = 1, 8.1 at M = 4). It serves as long as they would
// take half the time of the read of the weight, at most: loads and arithmetic do not overlap perfectly. That gives the
// A100 M1 = 2, or 3 with its slower memory of 40 GB; the paper measured 2 to 3.
//
// B to C, M2: up to M = 8 a weight of 16 rows meets one fragment of x. On an H200 the flat GEMM then has 0.96 to 1.3
// times the vendor's speed over twelve shapes; at M = 12 and 16, where it reads x twice as often, 0.84 to 0.98 times.
//
// A K that is no multiple of 8 elements leaves rows that 16-byte accesses cannot have, and float32 has no matrix unit:
// the vendor's.
struct GpuFacts {
  double bandwidth;   // bytes per second; 0: unknown
  double multiplies;  // float32 multiplications and additions per second, on the vector units
};
Choice gpu_rule(const GpuFacts& facts, DType dtype, int64_t K, int64_t M);

// Of packed weights. On a processor the GEMV keeps the sums of two rows of x in registers; the flat GEMM unpacks a
// weight once for all of them, and multiplies integers faster than the vendor's GEMM multiplies floats. On a GPU 4 bits
// arrive sooner than vector units have multiplied them, and beyond 64 rows the vendor's GEMM is worth unpacking the
// weight.
Choice packed_cpu_rule(int64_t M);
Choice packed_gpu_rule(DType dtype, int64_t M);

}  // namespace fdpp
