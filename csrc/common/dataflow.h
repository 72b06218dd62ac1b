// The heuristic dataflow (FlashDecoding++, section 5): which implementation of y = x W^T a shape takes.
#pragma once

#include <cstdint>
#include <map>
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

struct Choice {
  Impl impl;
  int config;    // of flat_gemm, -1 for its default; -1 elsewhere
  bool measured;  // from a table row; false: from the rule for unknown shapes
};

// Rows measured on one device. For each (dtype, N, K) the choices at increasing M.
class DataflowTable {
 public:
  struct Row {
    DType dtype;
    int64_t N, K, M;
    Impl impl;
    int config;
  };

  explicit DataflowTable(const std::vector<Row>& rows);

  // The choice at the smallest measured M that is not below the given one. Beyond the largest measured M, and for shapes
  // that were never measured, `fallback` decides.
  Choice choose(DType dtype, int64_t N, int64_t K, int64_t M, Choice fallback) const;

  size_t size() const { return size_; }

 private:
  struct Step {
    int64_t M;
    Impl impl;
    int config;
  };
  std::map<std::tuple<int, int64_t, int64_t>, std::vector<Step>> steps_;
  size_t size_;
};

// For shapes without a measurement on a processor: the GEMV reads the weights once per row of x, so it serves one row; the
// flat GEMM reads them once in all and stays bound by memory until its arithmetic, which grows with M, takes longer than
// the read; from there on the vendor's blocked GEMM wins. Where that is was measured (fdpp/dataflow_tables).
Choice cpu_rule(DType dtype, int64_t M);

}  // namespace fdpp
