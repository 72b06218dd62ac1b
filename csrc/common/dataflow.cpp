#include "common/dataflow.h"

#include <algorithm>

namespace fdpp {

DataflowTable::DataflowTable(const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    steps_[{static_cast<int>(row.dtype), row.format, row.N, row.K}].push_back({row.M, row.impl, row.config});
  }
  for (auto& [shape, steps] : steps_) {
    std::sort(steps.begin(), steps.end(), [](const Step& a, const Step& b) { return a.M < b.M; });
  }
}

std::optional<Choice> DataflowTable::find(DType dtype, int64_t N, int64_t K, int64_t M, int format) const {
  const auto shape = steps_.find({static_cast<int>(dtype), format, N, K});
  if (shape == steps_.end()) return std::nullopt;
  const auto& steps = shape->second;
  const auto step = std::lower_bound(steps.begin(), steps.end(), M, [](const Step& s, int64_t m) { return s.M < m; });
  if (step == steps.end()) return std::nullopt;
  return Choice{step->impl, step->config, Source::table};
}

Choice cpu_rule(DType dtype, int64_t K, int64_t M, bool half_gemm_is_slow) {
  constexpr int64_t kXBytes = 20 << 10;
  const bool multiplies_bf16 = dtype == DType::bf16 && !half_gemm_is_slow;
  const int64_t last_gemv = half_gemm_is_slow ? 4 : 24, last_flat = multiplies_bf16 ? 24 : 64;
  const bool fits = M <= last_gemv && M * K * (multiplies_bf16 ? 2 : 4) <= kXBytes;
  if (M <= 1 || fits) return {Impl::gemv, -1, Source::rule};
  if (M <= last_flat) return {Impl::flat_gemm, -1, Source::rule};
  return {Impl::aten, -1, Source::rule};
}

Choice gpu_rule(const GpuFacts& facts, DType dtype, int64_t K, int64_t M) {
  constexpr double kWeightBytes = 2.0;
  constexpr int64_t kMostFlatRows = 8, kMostGemvRows = 4;
  if (dtype == DType::f32 || K % 8 != 0) return {Impl::aten, -1, Source::rule};
  const double instructions = 1.6 * (static_cast<double>(M) + 1.0);
  const bool hidden = 2.0 * instructions * facts.bandwidth <= kWeightBytes * facts.multiplies;
  if (M == 1 || (hidden && M <= kMostGemvRows)) return {Impl::gemv, -1, Source::rule};
  if (M <= kMostFlatRows) return {Impl::flat_gemm, -1, Source::rule};
  return {Impl::aten, -1, Source::rule};
}

Choice packed_cpu_rule(int64_t M) { return {M <= 2 ? Impl::gemv : Impl::flat_gemm, -1, Source::rule}; }

Choice packed_gpu_rule(DType dtype, int64_t M) {
  return {dtype == DType::f32 || M > 64 ? Impl::aten : Impl::flat_gemm, -1, Source::rule};
}

}  // namespace fdpp
