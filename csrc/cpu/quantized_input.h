// x as products with packed weights want it: integers of 16 bits, with a scale per group of 32.
#pragma once

#include "common/params.h"
#include "common/weight_format.h"

namespace fdpp::cpu {

// A group of a row of x.
struct PackedGroup {
  int16_t values[kGroup];
  float scale;
  int32_t sums[3];  // of the values: of both halves, and of all
};

constexpr int kChunkGroups = 8;  // that a flat GEMM unpacks at once

// Rows of x as [chunk][row][group of a chunk]: what a chunk of the weight meets lies side by side.
FDPP_INLINE PackedGroup* packed_groups(void* packed, int64_t M, int64_t chunk, int64_t m) {
  return static_cast<PackedGroup*>(packed) + (chunk * M + m) * kChunkGroups;
}

template <typename V, typename T>
struct QuantizedInput {
  static void pack(const LinearParams& p, int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const T* row = static_cast<const T*>(p.x) + m * p.x_stride;
      for (int64_t group = 0; group < p.K / kGroup; ++group) {
        PackedGroup* to = packed_groups(p.packed_x, p.M, group / kChunkGroups, m) + group % kChunkGroups;
        pack_group(row + group * kGroup, *to);
      }
    }
  }

 private:
  static constexpr float kMost = 32767.0f;
  static constexpr float kLeast = 1e-33f;  // below it, everything counts as 0: the factor would overflow

  static void pack_group(const T* from, PackedGroup& to) {
    constexpr int kVectors = kGroup / V::width;
    typename V::F x[kVectors], largest = V::zero(), poison = V::zero();
    for (int i = 0; i < kVectors; ++i) {
      x[i] = V::load(from + i * V::width);
      largest = V::max(largest, V::max(x[i], V::sub(V::zero(), x[i])));
      poison = V::fma(x[i], V::zero(), poison);
    }
    const float most = V::max(largest);
    const float factor = most < kLeast ? 0.0f : kMost / most;
    const float not_finite = V::sum(poison);  // NaN where x holds NaN or infinity, which then is the result
    const bool is_finite = not_finite == 0.0f;
    to.scale = (most < kLeast ? 0.0f : most / kMost) + not_finite;
    int32_t sums[2];
    for (int half = 0; half < 2; ++half) {
      typename V::F sum = V::zero();
      for (int i = half * kVectors / 2; i < (half + 1) * kVectors / 2; ++i) {
        const auto value = is_finite ? V::round(V::mul(x[i], V::broadcast(factor))) : V::zero();
        V::store_words(to.values + i * V::width, value);
        sum = V::add(sum, value);
      }
      sums[half] = static_cast<int32_t>(V::sum(sum));  // of 16 integers of 16 bits: exact
    }
    to.sums[0] = sums[0], to.sums[1] = sums[1], to.sums[2] = sums[0] + sums[1];
  }
};

}  // namespace fdpp::cpu
