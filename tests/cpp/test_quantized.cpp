// Packed weights: what packing keeps, and the products of every instruction set and every kind of GPU with every
// format, in buffers of exactly the size of the tensors.
#include <algorithm>
#include <stdexcept>

#include "check.h"
#include "common/weight_format.h"
#include "cpu/backend.h"
#include "cpu/cpu_features.h"
#include "gpu/flat_plan.h"
#include "simt/backend.h"

using namespace fdpp;
using namespace fdpp::test;

namespace {

constexpr int64_t kMost = 70;                                                     // rows of x
constexpr int kScaleAt[kNumWeightFormats] = {0, 0, 0, 0, 0, 80, 108, 0, 0, 208};  // of a block

// A row as it lies in a file, its scales finite.
std::vector<uint8_t> random_row(WeightFormat format, int64_t K, Random& random) {
  const FormatInfo& info = info_of(format);
  std::vector<uint8_t> row(K / (info.groups * kGroup) * info.file_bytes);
  for (uint8_t& byte : row) byte = static_cast<uint8_t>(random());
  for (size_t block = 0; block < row.size(); block += info.file_bytes) {
    uint8_t* const scale = &row[block + kScaleAt[static_cast<int>(format)]];
    if (info.scale_dtype == DType::f32) {
      scale[3] = (scale[3] & 0x80) | 0x3d;
      if (info.has_zero) scale[4] %= 17;
      continue;
    }
    const int halves = format == WeightFormat::mxfp4 ? 0 : info.has_min ? 2 : 1;
    if (halves == 0) scale[0] = 118 + scale[0] % 8;
    for (int i = 0; i < halves; ++i) scale[2 * i + 1] = (scale[2 * i + 1] & 0x8b) | 0x20;
  }
  return row;
}

struct QuantizedCase {
  // `gap`: elements between rows of x.
  QuantizedCase(WeightFormat format, DType dtype, int64_t N, int64_t K, int64_t gap = 3)
      : format(format),
        panels((N + kPanelRows - 1) / kPanelRows),
        random(static_cast<uint64_t>(N * 101 + K)),
        weight(scratch(panels * info_of(format).panel_bytes(K))),
        values(panels * kPanelRows * K),
        x(Buffer::normal(dtype, kMost * (K + gap), random, 1.0, 16)),
        bias(Buffer::normal(dtype, N, random)) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      const uint8_t* rows[kPanelRows] = {};
      for (int64_t n = panel * kPanelRows; n < std::min((panel + 1) * kPanelRows, N); ++n) {
        rows[n % kPanelRows] = files.emplace_back(random_row(format, K, random)).data();
      }
      auto* const to = reinterpret_cast<uint8_t*>(weight.get()) + panel * info_of(format).panel_bytes(K);
      CHECK(pack_panel(format, rows, K, to) == 0, info_of(format).name);
      for (int i = 0; i < kPanelRows; ++i) unpack_row(format, to, i, K, &values[(panel * kPanelRows + i) * K]);
    }
    p.dtype = p.out_dtype = dtype, p.N = N, p.K = K, p.x = x.data(), p.x_stride = K + gap, p.weight = weight.get();
    for (int64_t m = 0; m < kMost; ++m) x.forbid(m * p.x_stride + K, (m + 1) * p.x_stride);
  }

  Buffer product(const cpu::Kernels& kernels, int64_t M, bool with_bias, bool flat) {
    const Buffer out(p.dtype, M * p.N);
    p.M = M, p.bias = with_bias ? bias.data() : nullptr, p.out = out.data();
    const Scratch packed = scratch(cpu::quantized_x_bytes(p));
    p.packed_x = packed.get();
    kernels.quantized_pack_x(p, 0, M);
    (flat ? kernels.quantized_flat_gemm : kernels.quantized_gemv)({p, format, p.N}, 0, panels);
    return out;
  }

  Buffer product(simt::Machine machine, int64_t M, bool with_bias, int spread) {
    constexpr int64_t kResident = 5;  // blocks at a time, which divides nothing
    const Buffer out(p.dtype, M * p.N);
    p.M = M, p.bias = with_bias ? bias.data() : nullptr, p.out = out.data();
    const LinearTiles& tiles = simt::linear_tiles(machine);
    PackedGemmParams params{};
    params.flat.linear = p, params.format = format, params.rows = p.N;
    params.flat.padded_m = pad_m(M, tiles.least_padded_m, kMaxPackedPaddedM);
    const FlatTile& tile = tiles.packed_of(params.flat.padded_m, format);
    const FlatWork work = flat_work(p.N, p.K, M, params.flat.padded_m, tile);
    params.flat.blocks = flat_blocks(work, spread, kResident);
    std::vector<float> partial(flat_partial_floats(params.flat.blocks, params.flat.padded_m, tile), NAN);
    std::vector<int32_t> arrivals(work.tiles);
    if (shares_tiles(work, params.flat.blocks)) {
      params.flat.partial = partial.data(), params.flat.arrivals = arrivals.data();
    }
    simt::run(machine, params, 1);
    return out;
  }

  void check(const Buffer& out, const std::string& what) const {
    for (int64_t i = 0; i < p.M * p.N; ++i) {
      double sum = p.bias != nullptr ? bias[i % p.N] : 0.0, magnitude = std::fabs(sum), of_x = 0.0;
      for (int64_t group = 0; group < p.K; group += kGroup) {
        double largest = 0.0, weights = 0.0;
        for (int64_t k = group; k < group + kGroup; ++k) {
          const double a = x[i / p.N * p.x_stride + k], w = values[i % p.N * p.K + k];
          sum += a * w, magnitude += std::fabs(a * w), weights += std::fabs(w);
          largest = std::max(largest, std::fabs(a));
        }
        of_x += largest * weights;
      }
      const double error = 1.001 * 0x1p-16 * of_x + static_cast<double>(p.K) * kFloatRoundoff * magnitude;
      CHECK_CLOSE(out[i], sum, error + roundoff(p.dtype) * (std::fabs(sum) + error) + underflow(p.dtype), what);
    }
  }

  bool same(const Buffer& a, const Buffer& b, int64_t begin, int64_t end) const {
    return std::memcmp(a.at(begin * p.N), b.at(begin * p.N), (end - begin) * p.N * size_of(p.dtype)) == 0;
  }

  WeightFormat format;
  int64_t panels;
  Random random;
  Scratch weight;
  std::vector<std::vector<uint8_t>> files;  // rows of the weight
  std::vector<float> values;
  Buffer x, bias;
  LinearParams p{};
};

// Calls fn(case, kernels, text) with one block, and with groups that fill no whole chunk.
template <typename Fn>
void for_every_case(Fn fn) {
  for (const FormatInfo& info : kWeightFormats) {
    for (const DType dtype : kDTypes) {
      for (const int64_t blocks : {1, info.groups == 1 ? 13 : 2}) {
        QuantizedCase of(weight_format(info.name), dtype, blocks == 1 ? 13 : 37, blocks * info.groups * kGroup);
        for (const cpu::Kernels* kernels : cpu::available_kernels()) {
          fn(of, *kernels, std::string(kernels->name) + " " + info.name + " " + name_of(dtype));
        }
      }
    }
  }
}

#ifdef FDPP_SANITIZE
constexpr DType kPackedDTypes[] = {DType::f16};  // with_kernel.h
#else
constexpr DType kPackedDTypes[] = {DType::f16, DType::bf16};
#endif
constexpr simt::Machine kMachines[] = {simt::Machine::nvidia, simt::Machine::cdna, simt::Machine::rdna};

bool refused(const char* layout, int64_t K) try {
  return segments_of(layout, K).empty();
} catch (const std::invalid_argument&) {
  return true;
}

double half_at(const uint8_t* from) { return to_float(f16{static_cast<uint16_t>(from[0] | from[1] << 8)}); }

// By a format's definition, without what packing shares between formats.
double value_in(WeightFormat format, const uint8_t* block, int k) {
  const double scale = half_at(block);
  if (format == WeightFormat::q8_0) return scale * static_cast<int8_t>(block[2 + k]);
  if (format == WeightFormat::q4_0) return scale * ((k < 16 ? block[2 + k] & 15 : block[2 + k - 16] >> 4) - 8);
  const uint8_t *own = block + 4 + k / 32, code = block[16 + k / 64 * 32 + k % 32];  // q4_k
  const int factor = k < 128 ? own[0] & 63 : (own[4] & 15) | (own[-4] >> 6) << 4;
  const int min = k < 128 ? own[4] & 63 : own[4] >> 4 | (own[0] >> 6) << 4;
  return scale * factor * (k % 64 < 32 ? code & 15 : code >> 4) - half_at(block + 2) * min;
}

}  // namespace

TEST(quantized_products) {
  for_every_case([](QuantizedCase& of, const cpu::Kernels& kernels, const std::string& what) {
    for (const bool with_bias : {false, true}) {
      const Buffer all = of.product(kernels, kMost, with_bias, true);
      of.check(all, what);
      for (const int64_t M : {1, 2, 3, 7, 8, 9, 64, 70}) {
        for (const bool flat : {false, true}) {
          CHECK(of.same(all, of.product(kernels, M, with_bias, flat), 0, M), what + " M " + std::to_string(M));
        }
      }
    }
  });
}

TEST(quantized_products_of_rows_that_are_not_finite) {
  for_every_case([](QuantizedCase& of, const cpu::Kernels& kernels, const std::string& what) {
    const int64_t spoiled = of.p.x_stride + of.p.K - 1;
    for (const bool flat : {false, true}) {
      of.x.set(spoiled, 1.0);
      const Buffer before = of.product(kernels, 3, true, flat);
      for (const double value : {kNan, HUGE_VAL, -HUGE_VAL}) {
        of.x.set(spoiled, value);
        const Buffer after = of.product(kernels, 3, true, flat);
        CHECK(of.same(before, after, 0, 1) && of.same(before, after, 2, 3), what);
        for (int64_t n = 0; n < of.p.N; ++n) CHECK(std::isnan(after[of.p.N + n]), what);
      }
    }
  });
}

TEST(layouts) {
  for (const char* layout : {"", "q4_0", "q4_0:", "q4_0:0", "q4_0:-1", "q4_0:1x", "q9:4", "q4_0:16,", ":16"}) {
    CHECK(refused(layout, 256), layout);
  }
  CHECK(refused("q4_0:16", 0) && refused("q4_0:16", 48) && refused("q4_0:16,q4_k:16", 128), "columns");
  const std::vector<Segment> both = segments_of("q4_k:17,q6_k:5", 512);
  CHECK(both.size() == 2 && both[0].format == WeightFormat::q4_k && both[1].format == WeightFormat::q6_k, "formats");
  constexpr int kBytes = 4 + 16 + 128;  // of 256 columns: scales, factors, codes
  CHECK(both[0].rows == 17 && both[1].rows == 5 && both[0].offset == 0 && both[1].offset == 32 * 2 * kBytes, "places");
}

TEST(packing_counts_scales_that_are_not_finite) {
  Random random(1);
  for (const FormatInfo& info : kWeightFormats) {
    const WeightFormat format = weight_format(info.name);
    for (int spoiled = 0; spoiled <= info.has_min; ++spoiled) {
      std::vector<uint8_t> row = random_row(format, 512, random), packed(info.panel_bytes(512));
      const uint8_t* rows[kPanelRows] = {};
      rows[3] = rows[9] = row.data();
      uint8_t* const scale = &row[row.size() - info.file_bytes + kScaleAt[static_cast<int>(format)]];
      const bool is_wide = info.scale_dtype == DType::f32, is_byte = format == WeightFormat::mxfp4;
      if (is_wide) scale[2] = 0x80;
      scale[is_byte ? 0 : is_wide ? 3 : 2 * spoiled + 1] = is_byte ? 0xff : is_wide ? 0x7f : 0x7e;
      CHECK(pack_panel(format, rows, 512, packed.data()) == 2, info.name);
    }
  }
}

TEST(packing_keeps_values) {
  for (const WeightFormat format : {WeightFormat::q4_0, WeightFormat::q8_0, WeightFormat::q4_k}) {
    const FormatInfo& info = info_of(format);
    const QuantizedCase of(format, DType::f32, 37, 512);
    const int columns = info.groups * kGroup;
    for (int i = 0; i < 48 * 512; ++i) {
      const int n = i / 512, k = i % 512;
      const double value = n < 37 ? value_in(format, &of.files[n][k / columns * info.file_bytes], k % columns) : 0.0;
      CHECK(of.values[i] == static_cast<float>(value), info.name);
    }
  }
}

TEST(gpu_packed_gemm_reads_nothing_beyond_its_tensors) {
  for (const FormatInfo& info : kWeightFormats) {
    for (const DType dtype : kPackedDTypes) {
      for (const int64_t blocks : {info.groups == 1 ? 4 : 1, info.groups == 1 ? 25 : 5}) {
        QuantizedCase of(weight_format(info.name), dtype, blocks < 5 ? 13 : 100, blocks * info.groups * kGroup, 8);
        for (const simt::Machine machine : kMachines) {
          for (const int spread : {kOneBlockPerTile, kBalanced, 2}) {
            for (const int64_t M : {1, 11, 35}) {
              of.check(of.product(machine, M, M > 1, spread),
                       std::string(info.name) + " " + name_of(dtype) + " machine " +
                           std::to_string(static_cast<int>(machine)) + " M " + std::to_string(M) + " spread " +
                           std::to_string(spread));
            }
          }
        }
      }
    }
  }
}
