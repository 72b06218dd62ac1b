// Products with packed weights, and their rows, over threads.
#include <algorithm>
#include <cmath>
#include <memory>

#include "cpu/backend.h"
#include "cpu/quantized_input.h"

namespace fdpp::cpu {

namespace {

template <typename T>
void narrow(const float* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from_float<T>(from[i]);
}

void store_row(const DequantizeParams& p, int64_t index, const float* row) {
  switch (p.dtype) {
    case DType::f32: return narrow(row, p.K, static_cast<float*>(p.out) + index * p.K);
    case DType::bf16: return narrow(row, p.K, static_cast<bf16*>(p.out) + index * p.K);
    case DType::f16: return narrow(row, p.K, static_cast<f16*>(p.out) + index * p.K);
  }
}

void dequantize_row(const DequantizeParams& p, const std::vector<Segment>& segments, int64_t index, float* row) {
  int64_t left = p.rows != nullptr ? p.rows[index] : index;
  std::fill_n(row, p.K, NAN);
  for (const Segment& segment : segments) {
    if (left >= 0 && left < segment.rows) {
      const int64_t panel = segment.offset + left / kPanelRows * info_of(segment.format).panel_bytes(p.K);
      unpack_row(segment.format, p.weight + panel, static_cast<int>(left % kPanelRows), p.K, row);
      break;
    }
    left -= segment.rows;
  }
  store_row(p, index, row);
}

}  // namespace

int64_t quantized_x_bytes(const LinearParams& p) {
  const int64_t chunks = (p.K / kGroup + kChunkGroups - 1) / kChunkGroups;
  return chunks * p.M * kChunkGroups * static_cast<int64_t>(sizeof(PackedGroup));
}

void quantized_linear(const Kernels& kernels, const LinearParams& p, const std::vector<Segment>& segments,
                      const std::vector<Choice>& choices, const EpilogueParams* epilogue, const Threads& threads) {
  if (p.M == 0) return;
  const int64_t row_bytes = p.K * static_cast<int64_t>(sizeof(float));
  for_each_piece(threads_for(p.M * row_bytes, threads), p.M, 1, std::max<int64_t>(1, kLeastPieceBytes / row_bytes),
                 [&kernels, p](int64_t begin, int64_t end) { kernels.quantized_pack_x(p, begin, end); });
  const EpilogueParams rest = epilogue != nullptr ? *epilogue : EpilogueParams{};
  const bool is_repeatable = rest.linear.residual == nullptr;  // that may change before the replay ends
  int64_t first = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    const Segment& segment = segments[i];
    const int64_t panel_bytes = info_of(segment.format).panel_bytes(p.K);
    QuantizedParams q{p, segment.format, p.N};
    q.linear.N = segment.rows;
    q.linear.weight = static_cast<const uint8_t*>(p.weight) + segment.offset;
    q.linear.out = static_cast<char*>(p.out) + first * size_of(p.dtype);
    if (p.bias != nullptr) q.linear.bias = static_cast<const char*>(p.bias) + first * size_of(p.dtype);
    const auto kernel = choices[i].impl == Impl::gemv ? kernels.quantized_gemv : kernels.quantized_flat_gemm;
    const auto columns = [&kernels, q, kernel, rest, first](int64_t begin, int64_t end) {
      kernel(q, begin, end);
      if (rest.product == nullptr) return;
      kernels.linear_epilogue(rest, first + begin * kPanelRows, std::min(first + end * kPanelRows, first + q.linear.N));
    };
    for_each_piece(threads_for(segment.bytes(p.K), threads), segment.panels(), 1, kLeastPieceBytes / panel_bytes,
                   columns, {q.linear.weight, panel_bytes, is_repeatable});
    first += segment.rows;
  }
}

void dequantize_rows(const DequantizeParams& p, const std::vector<Segment>& segments, const Threads& threads) {
  const int64_t row_bytes = std::max<int64_t>(1, p.K * static_cast<int64_t>(sizeof(float)));
  for_each_piece(threads_for(p.count * row_bytes, threads), p.count, 1, kLeastPieceBytes / row_bytes,
                 [p, segments](int64_t begin, int64_t end) {
                   const auto row = std::make_unique<float[]>(p.K);
                   for (int64_t i = begin; i < end; ++i) dequantize_row(p, segments, i, row.get());
                 });
}

}  // namespace fdpp::cpu
