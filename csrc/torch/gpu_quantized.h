// quantized_linear and dequantize_rows over the GPU kernels; B is a backend as in gpu_operators.h.
#pragma once

#include <algorithm>
#include <limits>

#include "common/linear_choice.h"
#include "gpu/flat_plan.h"
#include "torch/arguments/linear.h"

namespace fdpp {

// A grid has one dimension of 31 bits.
inline void check_blocks(const char* op, int64_t blocks) {
  if (blocks > std::numeric_limits<int>::max()) {
    fail(op, "the work must make fewer than 2^31 blocks; got " + std::to_string(blocks));
  }
}

// Of x, which may have to be copied, and of the weight the kernels read 16 bytes at a time.
inline QuantizedCall gpu_quantized_call(const LinearInputs& arguments, const std::string& layout) {
  QuantizedCall call = quantized_call(arguments, layout);
  Argument(arguments.op, "weight", arguments.weight).aligned();
  LinearParams& p = call.linear.params;
  constexpr int64_t kMostColumns = 1 << 26;  // of a panel of fewer than 2^31 bytes
  if (p.K > kMostColumns) {
    Argument(arguments.op, "x", arguments.x).fail("have at most 2^26 columns for the kernels of a GPU");
  }
  if (p.dtype == DType::f32 && has_epilogue(p)) {
    Argument(arguments.op, "x", arguments.x).fail("be float16 or bfloat16 for the kernels of a GPU");
  }
  if ((reinterpret_cast<uintptr_t>(p.x) | static_cast<uintptr_t>(p.x_stride * size_of(p.dtype))) % 16 != 0) {
    call.linear.x = torch::stable::contiguous(torch::stable::clone(call.linear.x));
    p.x = call.linear.x.data_ptr();
    p.x_stride = p.K;
  }
  return call;
}

template <typename B>
struct GpuQuantized {
  static Tensor dequantize_rows(const Tensor& weight, const std::string& layout, int64_t columns, const Tensor& rows,
                                ScalarType dtype) {
    const DequantizeCall call = dequantize_call(weight, layout, columns, rows, dtype);
    Argument("dequantize_rows", "weight", weight).aligned();
    B backend("dequantize_rows", weight);
    unpack(backend, call.params, call.weight.segments);
    return call.out;
  }

  static Tensor quantized_linear(const Tensor& x, const Tensor& weight, const std::string& layout,
                                 const OptionalTensor& bias, const OptionalTensor& residual, bool gated,
                                 const OptionalString& activation) {
    const LinearInputs arguments{"quantized_linear", x, weight, bias, residual, gated, activation};
    QuantizedCall quantized = gpu_quantized_call(arguments, layout);
    const std::vector<Segment>& segments = quantized.weight.segments;
    LinearCall& call = quantized.linear;
    LinearParams& p = call.params;
    B backend(arguments.op, x);
    if (p.M == 0) return make_output(arguments, call);
    const std::vector<Choice> choices = packed_choices(backend.device(), p, segments);
    if (choices.front().impl == Impl::aten || p.K < least_columns(backend, segments)) {
      return finish(backend, arguments, call, vendor_product(backend, arguments, quantized));
    }
    if (gated && splits_a_pair(segments)) {
      const Tensor product = empty_with_last(x, p.N);
      multiply(backend, arguments, product_params(call, product), segments, choices);
      return finish(backend, arguments, call, product);
    }
    const Tensor out = make_output(arguments, call);
    multiply(backend, arguments, p, segments, choices);
    return out;
  }

 private:
  // A step of the kernel has whole slices of K.
  static int64_t least_columns(const B& backend, const std::vector<Segment>& segments) {
    int64_t least = 0;
    for (const Segment& segment : segments) {
      least = std::max<int64_t>(least, backend.tiles().packed_of(kMaxPackedPaddedM, segment.format).depth);
    }
    return least;
  }

  // Whether rows of gate and up of one output lie in two segments.
  static bool splits_a_pair(const std::vector<Segment>& segments) {
    return std::any_of(segments.begin(), segments.end() - 1, [](const Segment& s) { return s.rows % 2 != 0; });
  }

  static void unpack(B& backend, const DequantizeParams& rows, const std::vector<Segment>& segments) {
    UnpackParams p{};
    for (const Segment& segment : segments) {
      const FormatInfo& info = info_of(segment.format);
      p.rows = rows;
      p.rows.weight += segment.offset;
      p.count = segment.rows;
      p.panel_bytes = info.panel_bytes(rows.K);
      p.run_bytes = info.run_bytes();
      p.header_bytes = static_cast<int>(info.header_bytes());
      p.group_bytes = static_cast<int>(info.group_bytes());
      p.bits = info.bits;
      p.zero = info.zero;
      p.groups = info.groups;
      p.sub_scales = info.sub_scales;
      p.scale_dtype = info.scale_dtype;
      p.has_min = info.has_min;
      p.has_zero = info.has_zero;
      p.has_codebook = info.codebook != nullptr;
      if (p.has_codebook) std::copy_n(info.codebook, 16, p.codebook);
      if (rows.count > 0) backend.run(p);
      p.first_row += segment.rows;
    }
  }

  // ImplC: torch's linear with the weight unpacked to the dtype of x.
  static Tensor vendor_product(B& backend, const LinearInputs& arguments, const QuantizedCall& call) {
    const LinearParams& p = call.linear.params;
    const Tensor weight = torch::stable::new_empty(arguments.x, {p.N, p.K});
    unpack(backend, {p.dtype, p.K, p.N, p.N, call.weight.data, nullptr, weight.data_ptr()}, call.weight.segments);
    return aten_linear(
        {arguments.op, arguments.x, weight, arguments.bias, arguments.residual, false, arguments.activation});
  }

  static Tensor finish(B& backend, const LinearInputs& arguments, LinearCall& call, const Tensor& product) {
    if (!has_epilogue(call.params)) return product;
    Tensor out = make_output(arguments, call);
    backend.run(EpilogueParams{call.params, product.data_ptr()});
    return out;
  }

  static void multiply(B& backend, const LinearInputs& arguments, const LinearParams& linear,
                       const std::vector<Segment>& segments, const std::vector<Choice>& choices) {
    PackedGemmParams p{};
    for (size_t i = 0; i < segments.size(); ++i) {
      const Segment& segment = segments[i];
      p.flat.linear = linear;
      p.flat.linear.weight = static_cast<const uint8_t*>(linear.weight) + segment.offset;
      p.format = segment.format;
      p.rows = segment.rows;
      run(backend, arguments, p, choices[i].config);
      p.first_row += segment.rows;
    }
  }

  // `spread`: the index of one (flat_plan.h); -1: the one that is planned.
  static void run(B& backend, const LinearInputs& arguments, PackedGemmParams p, int spread) {
    FlatGemmParams& flat = p.flat;
    const LinearParams& linear = flat.linear;
    flat.padded_m = is_batch_invariant() ? kBatchInvariantPaddedM
                                         : pad_m(linear.M, backend.tiles().least_padded_m, kMaxPackedPaddedM);
    const FlatTile& tile = backend.tiles().packed_of(flat.padded_m, p.format);
    const FlatMachine machine{backend.multiprocessors(), backend.bandwidth(), {}};
    const int resident = backend.resident_blocks(p);
    const FlatWork work = flat_work(p.rows, linear.K, linear.M, flat.padded_m, tile);
    if (spread < 0) {
      spread = plan_packed_gemm(p.rows, linear.K, linear.M, flat.padded_m, tile, resident, machine,
                                bytes_per_element(p.format));
    }
    flat.blocks = flat_blocks(work, kSpreads[spread], int64_t{machine.multiprocessors} * resident);
    check_blocks(arguments.op, flat.blocks);
    OptionalTensor partial;
    if (shares_tiles(work, flat.blocks)) {
      partial = empty_floats(arguments.x, flat_partial_floats(flat.blocks, flat.padded_m, tile));
      backend.prepare(*partial);
      flat.partial = static_cast<float*>(partial->data_ptr());
      flat.arrivals = backend.arrivals(work.tiles);
    }
    backend.run(p);
  }
};

}  // namespace fdpp
