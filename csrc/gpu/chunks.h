// Elements in global memory: one by one, and in chunks of 8, which of the narrow dtypes are 16 bytes in one load or
// store where the rows allow it.
#pragma once

#include "gpu/arch.h"

namespace fdpp {

constexpr int kChunk = 8;

// Whether chunks can be accessed whole: everything begins at multiples of 16 bytes. Strides count elements.
template <typename T>
FDPP_INLINE bool is_aligned16(const void* data, int64_t stride) {
  return (reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(stride * static_cast<int64_t>(sizeof(T)))) % 16 ==
         0;
}

// Conversions by the hardware's instructions; from_float() rounds as they do.
template <typename Arch, typename T>
FDPP_INLINE float widen(T x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    float low, high;
    Arch::template unpack<T>(x.bits, low, high);
    return low;
  }
}

template <typename Arch, typename T>
FDPP_INLINE T narrow(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    return {static_cast<uint16_t>(Arch::template pack<T>(x, 0.0f))};
  }
}

template <typename Arch, typename T>
FDPP_INLINE void unpack_chunk(float (&x)[kChunk], const Bytes16& bytes) {
  for (int i = 0; i < 4; ++i) Arch::template unpack<T>(bytes.words[i], x[2 * i], x[2 * i + 1]);
}

// The first `count` elements, zeros after them. `whole`: all of them are there, in one piece.
template <typename Arch, typename T>
FDPP_INLINE void load_chunk(float (&x)[kChunk], const T* from, int64_t count, bool whole) {
  if (!whole) {
    for (int i = 0; i < kChunk; ++i) x[i] = i < count ? widen<Arch>(from[i]) : 0.0f;
  } else if constexpr (sizeof(T) == 2) {
    unpack_chunk<Arch, T>(x, Arch::load16(from));
  } else {
    for (int half = 0; half < 2; ++half) {
      const Bytes16 bytes = Arch::load16(from + 4 * half);
      for (int i = 0; i < 4; ++i) x[4 * half + i] = bits_to_float(bytes.words[i]);
    }
  }
}

template <typename Arch, typename T>
FDPP_INLINE void store_chunk(T* to, const float (&x)[kChunk], int64_t count, bool whole) {
  if (!whole) {
    for (int i = 0; i < kChunk; ++i) {
      if (i < count) to[i] = narrow<Arch, T>(x[i]);
    }
  } else if constexpr (sizeof(T) == 2) {
    Bytes16 bytes;
    for (int i = 0; i < 4; ++i) bytes.words[i] = Arch::template pack<T>(x[2 * i], x[2 * i + 1]);
    Arch::store16(to, bytes);
  } else {
    for (int half = 0; half < 2; ++half) {
      Bytes16 bytes;
      for (int i = 0; i < 4; ++i) bytes.words[i] = float_to_bits(x[4 * half + i]);
      Arch::store16(to + 4 * half, bytes);
    }
  }
}

// Arithmetic on one float, for activation.h.
template <typename Arch>
struct Scalar {
  using F = float;
  FDPP_INLINE static float broadcast(float x) { return x; }
  FDPP_INLINE static float add(float a, float b) { return a + b; }
  FDPP_INLINE static float sub(float a, float b) { return a - b; }
  FDPP_INLINE static float mul(float a, float b) { return a * b; }
  FDPP_INLINE static float div(float a, float b) { return a / b; }
  FDPP_INLINE static float fma(float a, float b, float c) { return a * b + c; }
  FDPP_INLINE static float max(float a, float b) { return a > b ? a : b; }
  FDPP_INLINE static float exp2(float x) { return Arch::exp2(x); }
};

}  // namespace fdpp
