// Rows of a packed weight, unpacked: for embeddings, and for a GEMM of the vendor's. A thread has one group of 32
// elements of a row; neighbours have rows of the same panel, whose words lie side by side. What a format is made of are
// values here: one kernel serves them all.
#pragma once

#include "gpu/chunks.h"

namespace fdpp {

template <typename Arch>
class Dequantize {
 public:
  using Policy = Arch;
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocksPerSM = 1;
  static constexpr int kSharedBytes = 0;

  static int64_t grid(const UnpackParams& p) {
    return ((p.rows.count + kPanelRows - 1) / kPanelRows * kPanelRows * (p.rows.K / kGroup) + kThreads - 1) / kThreads;
  }

  FDPP_DEVICE static void run(const UnpackParams& p) {
    Arch::wait_for_producers();
    Arch::launch_dependents();
    const int64_t thread = int64_t{Arch::block_index()} * kThreads + Arch::thread_index(), groups = p.rows.K / kGroup;
    const int64_t index = thread / kPanelRows / groups * kPanelRows + thread % kPanelRows;
    const int64_t group = thread / kPanelRows % groups;
    if (index >= p.rows.count) return;
    const int64_t number = p.rows.rows != nullptr ? p.rows.rows[index] : index, row = number - p.first_row;
    const int64_t at = index * p.rows.K + group * kGroup;
    float values[kGroup];
    if (row >= 0 && row < p.count) {
      unpack(p, row, group, values);
    } else if (p.first_row == 0 && (number < 0 || number >= p.rows.total_rows)) {
      FDPP_UNROLL
      for (int k = 0; k < kGroup; ++k) values[k] = bits_to_float(0x7fc00000);
    } else {
      return;  // a row of another segment
    }
    switch (p.rows.dtype) {
      case DType::f16: return store(static_cast<f16*>(p.rows.out) + at, values);
      case DType::bf16: return store(static_cast<bf16*>(p.rows.out) + at, values);
      case DType::f32: return store(static_cast<float*>(p.rows.out) + at, values);
    }
  }

 private:
  FDPP_INLINE static void unpack(const UnpackParams& p, int64_t row, int64_t group, float (&values)[kGroup]) {
    const int lane = static_cast<int>(row % kPanelRows);
    const uint8_t* const run = p.rows.weight + row / kPanelRows * p.panel_bytes + group / p.groups * p.run_bytes;
    const uint8_t* const own = run + p.header_bytes + group % p.groups * p.group_bytes;
    const float scale = number(p.scale_dtype, run, lane);
    const float min = p.has_min ? number(p.scale_dtype, run, kPanelRows + lane) : 0.0f;
    const int zero = p.has_zero ? run[size_of(p.scale_dtype) * kPanelRows + lane] : p.zero;

    uint32_t codes[kGroup] = {};
    const uint8_t* plane = own + p.group_bytes - p.bits * 4 * kPanelRows + 4 * lane;
    int shift = 0;
    add_plane<8>(p.bits, plane, shift, codes);
    add_plane<4>(p.bits, plane, shift, codes);
    add_plane<2>(p.bits, plane, shift, codes);
    add_plane<1>(p.bits, plane, shift, codes);

    float scales[2], mins[2];  // of the halves
    FDPP_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int sub = half * (p.sub_scales - 1);
      scales[half] = p.sub_scales > 0 ? scale * factor(own, sub, lane) : scale;
      mins[half] = p.sub_scales > 0 && p.has_min ? min * factor(own, p.sub_scales + sub, lane) : min;
    }
    FDPP_UNROLL
    for (int k = 0; k < kGroup; ++k) {
      const int value = p.has_codebook ? p.codebook[codes[k]]
                        : p.bits == 8  ? static_cast<int8_t>(codes[k])
                                       : static_cast<int>(codes[k]) - zero;
      const float scaled = scales[k / (kGroup / 2)] * static_cast<float>(value);
      values[k] = p.has_min ? scaled + mins[k / (kGroup / 2)] : scaled;
    }
  }

  // The bits of the codes that lie in the plane, if there is one.
  template <int kBits>
  FDPP_INLINE static void add_plane(int bits, const uint8_t*& plane, int& shift, uint32_t (&codes)[kGroup]) {
    if ((bits & kBits) == 0) return;
    constexpr int kEach = 16 / kBits;  // codes of half a word
    constexpr uint32_t kMask = (1u << kBits) - 1;
    FDPP_UNROLL
    for (int v = 0; v < kBits; ++v, plane += 4 * kPanelRows) {
      const uint32_t word = Arch::template load_word<uint32_t>(plane);
      FDPP_UNROLL
      for (int s = 0; s < kEach; ++s) {
        codes[2 * (kEach * v + s)] |= (word >> kBits * s & kMask) << shift;
        codes[2 * (kEach * v + s) + 1] |= (word >> (16 + kBits * s) & kMask) << shift;
      }
    }
    shift += kBits;
  }

  FDPP_INLINE static float factor(const uint8_t* group, int index, int lane) {
    return static_cast<float>(static_cast<int8_t>(group[index * kPanelRows + lane]));
  }

  FDPP_INLINE static float number(DType dtype, const uint8_t* from, int index) {
    if (dtype == DType::f32) return bits_to_float(Arch::template load_word<uint32_t>(from + 4 * index));
    const uint16_t bits = Arch::template load_word<uint16_t>(from + 2 * index);
    return dtype == DType::f16 ? to_float(f16{bits}) : to_float(bf16{bits});
  }

  template <typename Out>
  FDPP_INLINE static void store(Out* to, const float (&values)[kGroup]) {
    FDPP_UNROLL
    for (int i = 0; i < kGroup; i += kChunk) {
      float chunk[kChunk];
      FDPP_UNROLL
      for (int j = 0; j < kChunk; ++j) chunk[j] = values[i + j];
      store_chunk<Arch>(to + i, chunk, kChunk, true);
    }
  }
};

}  // namespace fdpp
