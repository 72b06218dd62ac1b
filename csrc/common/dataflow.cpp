#include "common/dataflow.h"

#include <algorithm>

namespace fdpp {

DataflowTable::DataflowTable(const std::vector<Row>& rows) : size_(rows.size()) {
  for (const Row& row : rows) {
    steps_[{static_cast<int>(row.dtype), row.N, row.K}].push_back({row.M, row.impl, row.config});
  }
  for (auto& [shape, steps] : steps_) {
    std::sort(steps.begin(), steps.end(), [](const Step& a, const Step& b) { return a.M < b.M; });
  }
}

Choice DataflowTable::choose(DType dtype, int64_t N, int64_t K, int64_t M, Choice fallback) const {
  const auto shape = steps_.find({static_cast<int>(dtype), N, K});
  if (shape == steps_.end()) return fallback;
  const auto& steps = shape->second;
  const auto step = std::lower_bound(steps.begin(), steps.end(), M, [](const Step& s, int64_t m) { return s.M < m; });
  if (step == steps.end()) return fallback;
  return {step->impl, step->config, true};
}

Choice cpu_rule(DType dtype, int64_t M) {
  const int64_t last_flat = dtype == DType::bf16 ? 24 : 64;
  if (M <= 1) return {Impl::gemv, -1, false};
  if (M <= last_flat) return {Impl::flat_gemm, -1, false};
  return {Impl::aten, -1, false};
}

}  // namespace fdpp
