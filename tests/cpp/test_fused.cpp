// rms_norm, add_rms_norm, silu_mul, rope_append and what follows a product, of every instruction set on ragged sizes,
// in buffers of exactly the size of the tensors.
#include "check.h"
#include "cpu/backend.h"
#include "cpu/cpu_features.h"

using namespace fdpp;
using namespace fdpp::test;

namespace {

constexpr int64_t kWidths[] = {0, 1, 2, 7, 15, 16, 17, 31, 33, 64, 100, 577};

template <typename Body>
void for_every_kernel_and_dtype(Body body) {
  for (const cpu::Kernels* kernels : cpu::available_kernels()) {
    for (const DType dtype : kDTypes) body(*kernels, dtype, std::string(kernels->name) + " " + name_of(dtype));
  }
}

// The offset of row i in a tensor [rows / inner, inner, width] with free outer strides.
struct RowLayout {
  int64_t rows, inner, outer_stride, inner_stride;

  RowLayout(int64_t outer, int64_t inner, int64_t width, Random& random) : rows(outer * inner), inner(inner) {
    inner_stride = width + pick(random, 0, 3);
    outer_stride = inner * inner_stride + pick(random, 0, 5);
  }
  int64_t offset(int64_t row) const { return row / inner * outer_stride + row % inner * inner_stride; }
  int64_t elements(int64_t width) const { return offset(rows - 1) + width; }
};

// `residual_dtype`: null where nothing is added. A layer norm has a bias here.
void check_norm(const cpu::Kernels& kernels, DType dtype, int64_t width, const DType* residual_dtype, bool centered,
                const std::string& what) {
  const bool add = residual_dtype != nullptr;
  const DType sum_dtype = add ? *residual_dtype : dtype;
  Random random(static_cast<uint64_t>(width));
  const RowLayout layout(3, 2, width, random);
  const Buffer x = Buffer::normal(dtype, layout.elements(width), random, 3.0),
               weight = Buffer::normal(dtype, width, random), bias = Buffer::normal(dtype, width, random);
  const Buffer before = Buffer::normal(sum_dtype, layout.rows * width, random);
  const Buffer residual(before), out(dtype, layout.rows * width);
  NormParams p{};
  p.dtype = dtype;
  p.rows = layout.rows, p.inner = layout.inner, p.width = width;
  p.x = x.data(), p.outer_stride = layout.outer_stride, p.inner_stride = layout.inner_stride;
  p.residual = add ? residual.data() : nullptr;
  p.residual_dtype = sum_dtype;
  p.centered = centered;
  p.weight = weight.data();
  p.bias = centered ? bias.data() : nullptr;
  p.eps = 1e-5f;
  p.out = out.data();
  cpu::norm(kernels, p, threads(2));
  for (int64_t row = 0; row < layout.rows; ++row) {
    // The norm is that of the sum before it is rounded.
    const auto normed = [&](int64_t i) { return x[layout.offset(row) + i] + (add ? before[row * width + i] : 0.0); };
    double mean = 0.0, squares = 0.0, largest = 0.0;
    for (int64_t i = 0; i < width && centered; ++i) mean += normed(i) / static_cast<double>(width);
    for (int64_t i = 0; i < width; ++i) {
      const double sum = normed(i);
      squares += (sum - mean) * (sum - mean);
      largest = std::max(largest, std::fabs(sum));
      if (!add) continue;
      const double tolerance = 1.01 * roundoff(sum_dtype) * std::fabs(sum) + underflow(sum_dtype);
      CHECK_CLOSE(residual[row * width + i], sum, tolerance, what + " residual");
    }
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(width) + p.eps);
    for (int64_t i = 0; i < width; ++i) {
      const double scaled = (normed(i) - mean) * scale * weight[i], expected = scaled + (centered ? bias[i] : 0.0);
      const double few = (8 + std::sqrt(width)) * kFloatRoundoff;
      // A mean is off by rounding of the largest value; that of one value is the value itself.
      const double lost = centered ? few * largest * scale * std::fabs(weight[i]) * (1 + std::fabs(scaled)) : 0.0;
      const double tolerance = roundoff(dtype) * std::fabs(expected) + few * std::fabs(scaled) + lost;
      CHECK_CLOSE(out[row * width + i], expected, tolerance + underflow(dtype), what);
    }
  }
}

struct RopeSize {
  int head_dim, rotated_dim, page_size;  // page_size 0: contiguous
};

constexpr RopeSize kRopeSizes[] = {{64, 64, 0},   {64, 64, 5}, {80, 80, 0}, {80, 40, 3}, {96, 2, 0},
                                   {128, 96, 16}, {10, 6, 0},  {7, 6, 2},   {64, 0, 0}};

void check_rope(const cpu::Kernels& kernels, DType dtype, RopeSize size, bool interleaved, const std::string& what) {
  constexpr int kBatch = 2, kTokens = 3, kQueryHeads = 3, kKvHeads = 2, kMaxPosition = 11;
  const int dim = size.head_dim, half = size.rotated_dim / 2;
  Random random(static_cast<uint64_t>(dim + half));
  const int64_t rows = kBatch * kTokens;
  const Buffer q = Buffer::normal(dtype, rows * kQueryHeads * dim, random);
  const Buffer k = Buffer::normal(dtype, rows * kKvHeads * dim, random),
               v = Buffer::normal(dtype, rows * kKvHeads * dim, random);
  const Buffer cos = Buffer::normal(DType::f32, kMaxPosition * half, random);
  const Buffer sin = Buffer::normal(DType::f32, kMaxPosition * half, random);
  const std::vector<int32_t> positions{8, 9, 10, -5, 0, 1};
  const int64_t page = size.page_size > 0 ? size.page_size : kMaxPosition;
  const int64_t pages = (kMaxPosition + page - 1) / page, blocks = kBatch * pages;
  std::vector<int32_t> block_table(static_cast<size_t>(blocks));
  for (int64_t i = 0; i < blocks; ++i) block_table[i] = static_cast<int32_t>(blocks - 1 - i);
  const int64_t token = int64_t{kKvHeads} * dim;
  const Buffer k_cache(dtype, blocks * page * token), v_cache(dtype, blocks * page * token);
  const Buffer out(dtype, q.count());

  RopeParams p{};
  p.dtype = dtype;
  p.batch = kBatch, p.query_len = kTokens, p.query_heads = kQueryHeads, p.kv_heads = kKvHeads;
  p.head_dim = dim, p.rotated_dim = size.rotated_dim;
  p.q = q.data(), p.k = k.data(), p.v = v.data();
  const int64_t q_token = int64_t{kQueryHeads} * dim;
  const int64_t q_strides[] = {kTokens * q_token, q_token, dim}, kv_strides[] = {kTokens * token, token, dim};
  for (int i = 0; i < 3; ++i) p.q_strides[i] = q_strides[i], p.k_strides[i] = p.v_strides[i] = kv_strides[i];
  p.cos = reinterpret_cast<const float*>(cos.data());
  p.sin = reinterpret_cast<const float*>(sin.data());
  p.positions = positions.data(), p.positions_stride = kTokens;
  p.k_cache = {k_cache.data(), page * token, token, dim};
  p.v_cache = {v_cache.data(), page * token, token, dim};
  p.layout = {size.page_size > 0 ? block_table.data() : nullptr, pages, page, blocks};
  p.interleaved = interleaved;
  p.out = out.data();
  cpu::rope_append(kernels, p, threads(2));

  // Element d of the head that begins at `head` of `from`, turned to `position`.
  const auto turned = [&](const Buffer& from, int64_t head, int d, int32_t position) {
    if (position < 0 || d >= 2 * half) return from[head + d];
    const int pair = interleaved ? d / 2 : d % half;
    const bool first = interleaved ? d % 2 == 0 : d < half;
    const int other = interleaved ? (first ? d + 1 : d - 1) : (first ? d + half : d - half);
    const double c = cos[int64_t{position} * half + pair], s = sin[int64_t{position} * half + pair];
    return from[head + d] * c + (first ? -1 : 1) * from[head + other] * s;
  };
  const auto close = [&](double actual, double expected, const char* name) {
    CHECK_CLOSE(actual, expected, roundoff(dtype) * std::fabs(expected) + 64 * kFloatRoundoff, what + " " + name);
  };
  std::vector<bool> written(static_cast<size_t>(blocks * page), false);
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t position = positions[static_cast<size_t>(row)];
    for (int h = 0; h < kQueryHeads; ++h) {
      const int64_t head = row * q_token + int64_t{h} * dim;
      for (int d = 0; d < dim; ++d) close(out[head + d], turned(q, head, d, position), "q");
    }
    if (position < 0) continue;
    const int64_t b = row / kTokens, index = b * pages + position / page;
    const int64_t slot = (size.page_size > 0 ? block_table[static_cast<size_t>(index)] : b) * page + position % page;
    written[static_cast<size_t>(slot)] = true;
    for (int h = 0; h < kKvHeads; ++h) {
      const int64_t from = row * token + int64_t{h} * dim, to = slot * token + int64_t{h} * dim;
      for (int d = 0; d < dim; ++d) {
        close(k_cache[to + d], turned(k, from, d, position), "k_cache");
        CHECK(v_cache[to + d] == v[from + d], what + " v_cache");
      }
    }
  }
  for (int64_t i = 0; i < blocks * page * token; ++i) {
    if (!written[static_cast<size_t>(i / token)])
      CHECK(std::isnan(k_cache[i]) && std::isnan(v_cache[i]), what + " untouched");
  }
}

}  // namespace

TEST(norm) {
  for_every_kernel_and_dtype([](const cpu::Kernels& kernels, DType dtype, const std::string& what) {
    for (const int64_t width : kWidths) {
      const DType wide = DType::f32;
      for (const bool centered : {false, true}) {
        const std::string name = what + (centered ? " layer norm" : " RMS norm");
        check_norm(kernels, dtype, width, nullptr, centered, name);
        check_norm(kernels, dtype, width, &dtype, centered, name + " add");
        check_norm(kernels, dtype, width, &wide, centered, name + " add to float32");
      }
    }
  });
}

TEST(silu_mul) {
  for_every_kernel_and_dtype([](const cpu::Kernels& kernels, DType dtype, const std::string& what) {
    for (const int64_t width : kWidths) {
      Random random(static_cast<uint64_t>(width));
      const RowLayout layout(2, 3, 2 * width, random);
      const Buffer gate_up = Buffer::normal(dtype, layout.elements(2 * width), random, 5.0);
      const Buffer out(dtype, layout.rows * width);
      SiluMulParams p{};
      p.dtype = dtype;
      p.rows = layout.rows, p.inner = layout.inner, p.width = width;
      p.gate_up = gate_up.data(), p.outer_stride = layout.outer_stride, p.inner_stride = layout.inner_stride;
      p.out = out.data();
      cpu::silu_mul(kernels, p, threads(2));
      for (int64_t i = 0; i < layout.rows * width; ++i) {
        const int64_t at = layout.offset(i / width) + i % width;
        const double gate = gate_up[at], expected = gate / (1.0 + std::exp(-gate)) * gate_up[at + width];
        const double relative = roundoff(dtype) + 16 * kFloatRoundoff;
        CHECK_CLOSE(out[i], expected, relative * std::fabs(expected) + underflow(dtype), what);
      }
    }
  });
}

TEST(linear_epilogue) {
  for_every_kernel_and_dtype([](const cpu::Kernels& kernels, DType dtype, const std::string& what) {
    for (const int64_t columns : kWidths) {
      for (const bool gated : {false, true}) {
        Random random(static_cast<uint64_t>(columns));
        const int64_t rows = 5, stride = columns + 3, width = gated ? 2 * columns : columns;
        const Buffer product = Buffer::normal(dtype, rows * width, random, 5.0);
        const Buffer residual = Buffer::normal(DType::f32, (rows - 1) * stride + columns, random);
        const Buffer out(DType::f32, rows * columns);
        EpilogueParams p{};
        p.linear.dtype = dtype, p.linear.out_dtype = DType::f32;
        p.linear.M = rows, p.linear.N = width, p.linear.gated = gated;
        if (gated) p.linear.activation = Activation::silu;
        p.linear.residual = residual.data(), p.linear.residual_stride = stride;
        p.linear.out = out.data();
        p.product = product.data();
        cpu::linear_epilogue(kernels, p, threads(2));
        for (int64_t i = 0; i < rows * columns; ++i) {
          const int64_t row = i / columns, column = i % columns;
          const double first = product[row * width + (gated ? 2 : 1) * column];
          const double y = gated ? first / (1.0 + std::exp(-first)) * product[row * width + 2 * column + 1] : first;
          const double expected = y + residual[row * stride + column];
          const double tolerance =
              16 * kFloatRoundoff * std::fabs(y) + 2 * kFloatRoundoff * std::fabs(expected) + 0x1p-126;
          CHECK_CLOSE(out[i], expected, tolerance, what + (gated ? " gated" : ""));
        }
      }
    }
  });
}

TEST(rope_append) {
  for_every_kernel_and_dtype([](const cpu::Kernels& kernels, DType dtype, const std::string& what) {
    for (const RopeSize size : kRopeSizes) {
      const std::string shape =
          what + " D " + std::to_string(size.head_dim) + " rot " + std::to_string(size.rotated_dim);
      check_rope(kernels, dtype, size, false, shape);
      check_rope(kernels, dtype, size, true, shape + " interleaved");
    }
  });
}
