// What the policies of AMD GPUs share (gpu/arch.h). Everything is a builtin of clang: the device libraries that the
// headers of HIP rest on are not needed. Memory orders: "User Guide for AMDGPU Backend" of LLVM, section "Memory
// Model".
#pragma once

#include "hip/device.h"

#include <type_traits>

#include "gpu/arch.h"

namespace fdpp::hip {

template <int kLanes>
struct Amd {
  static constexpr int kWarpSize = kLanes;

  // Execution
  __device__ __forceinline__ static int thread_index() { return static_cast<int>(__builtin_amdgcn_workitem_id_x()); }
  __device__ __forceinline__ static int block_index() { return static_cast<int>(__builtin_amdgcn_workgroup_id_x()); }

  __device__ __forceinline__ static void barrier() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
  }

  // A wave runs in lock step and its LDS accesses are executed in order; only the compiler must not reorder them.
  __device__ __forceinline__ static void warp_sync() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
    __builtin_amdgcn_wave_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
  }

  __device__ __forceinline__ static bool any(bool x) {
    if constexpr (kLanes == 64) {
      return __builtin_amdgcn_ballot_w64(x) != 0;
    } else {
      return __builtin_amdgcn_ballot_w32(x) != 0;
    }
  }

  // ds_bpermute_b32 takes four times the number of the lane.
  __device__ __forceinline__ static int shuffle(int x, int lane) { return __builtin_amdgcn_ds_bpermute(4 * lane, x); }
  __device__ __forceinline__ static float shuffle_xor(float x, int mask) {
    return __builtin_bit_cast(float, shuffle(__builtin_bit_cast(int, x), (thread_index() % kLanes) ^ mask));
  }

  // Kernels of a stream do not overlap.
  __device__ __forceinline__ static void wait_for_producers() {}
  __device__ __forceinline__ static void launch_dependents() {}

  // Memory
  __device__ __forceinline__ static char* shared_memory() {
    extern __shared__ __attribute__((aligned(16))) char memory[];
    return memory;
  }

  template <typename T>
  __device__ __forceinline__ static T shared_load(const T* source) {
    return *source;
  }
  template <typename T>
  __device__ __forceinline__ static void shared_store(T* target, T x) {
    *target = x;
  }

  // Through registers. What is not valid reads the kernel's arguments instead, which are always there: without a branch
  // the compiler starts all the loads of a tile before it waits for the first.
  __device__ __forceinline__ static void copy16(void* shared, const void* global, bool valid) {
    const void* source = valid ? global : (const void*)__builtin_amdgcn_kernarg_segment_ptr();
    Words words = *(const __attribute__((address_space(1))) Words*)source;
    *static_cast<Words*>(shared) = valid ? words : Words{};
  }
  __device__ __forceinline__ static void copy_commit() {}
  template <int N>
  __device__ __forceinline__ static void copy_wait() {}

  __device__ __forceinline__ static Bytes16 load16(const void* source) {
    return __builtin_bit_cast(Bytes16, *(const __attribute__((address_space(1))) Words*)source);
  }
  __device__ __forceinline__ static void store16(void* target, const Bytes16& x) {
    *(__attribute__((address_space(1))) Words*)target = __builtin_bit_cast(Words, x);
  }
  __device__ __forceinline__ static Bytes16 stream_load(const void* source) {
    return __builtin_bit_cast(Bytes16,
                              __builtin_nontemporal_load((const __attribute__((address_space(1))) Words*)source));
  }

  template <typename Word>
  __device__ __forceinline__ static Word stream_word(const void* source) {
    using Plain = PlainOf<sizeof(Word)>;
    return __builtin_bit_cast(Word, __builtin_nontemporal_load((const __attribute__((address_space(1))) Plain*)source));
  }
  template <typename Word>
  __device__ __forceinline__ static Word load_word(const void* source) {
    using Plain = PlainOf<sizeof(Word)>;
    return __builtin_bit_cast(Word, *(const __attribute__((address_space(1))) Plain*)source);
  }

  // Kernels do not overlap, and within one the loads themselves start early.
  __device__ __forceinline__ static void prefetch(const void*) {}

  __device__ __forceinline__ static float coherent_load(const float* source) {
    return __hip_atomic_load(source, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
  }
  // Atomic accesses have 8 bytes at most.
  __device__ __forceinline__ static Bytes16 coherent_load16(const void* source) {
    const auto half = (const __attribute__((address_space(1))) uint64_t*)source;
    const uint64_t halves[2] = {__hip_atomic_load(half, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT),
                                __hip_atomic_load(half + 1, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT)};
    return __builtin_bit_cast(Bytes16, halves);
  }
  // Every wave waits for its own stores: a release by the wave that arrives would wait for none but that wave's.
  __device__ __forceinline__ static void publish() { __builtin_amdgcn_fence(__ATOMIC_RELEASE, "agent"); }
  __device__ __forceinline__ static bool arrive(int* counter, int count) {
    const bool last = __hip_atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL, __HIP_MEMORY_SCOPE_AGENT) == count - 1;
    if (last) *counter = 0;
    return last;
  }
  __device__ __forceinline__ static void add(int64_t* target, int64_t x) {
    __hip_atomic_fetch_add(target, x, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
  }

  // Arithmetic
  // v_exp_f32
  __device__ __forceinline__ static float exp2(float x) { return __builtin_amdgcn_exp2f(x); }

  template <typename T>
  __device__ __forceinline__ static uint32_t pack(float low, float high) {
    return uint32_t{round<T>(low)} | uint32_t{round<T>(high)} << 16;
  }

  template <typename T>
  __device__ __forceinline__ static void unpack(uint32_t x, float& low, float& high) {
    if constexpr (__is_same(T, f16)) {
      low = static_cast<float>(__builtin_bit_cast(_Float16, static_cast<uint16_t>(x)));
      high = static_cast<float>(__builtin_bit_cast(_Float16, static_cast<uint16_t>(x >> 16)));
    } else {
      low = bits_to_float(x << 16);
      high = bits_to_float(x & 0xffff0000u);
    }
  }

  template <uint32_t kMask, uint32_t kBase>
  __device__ __forceinline__ static uint32_t place(uint32_t x) {
    return (x & kMask) | kBase;
  }

  // Not every architecture has packed arithmetic on bf16. An exact difference is the upper half of a float.
  template <typename T>
  __device__ __forceinline__ static uint32_t subtract(uint32_t a, uint32_t b) {
    if constexpr (__is_same(T, f16)) {
      using Halves = _Float16 __attribute__((ext_vector_type(2)));
      return __builtin_bit_cast(uint32_t, __builtin_bit_cast(Halves, a) - __builtin_bit_cast(Halves, b));
    } else {
      const float low = bits_to_float(a << 16) - bits_to_float(b << 16),
                  high = bits_to_float(a & 0xffff0000u) - bits_to_float(b & 0xffff0000u);
      return float_to_bits(low) >> 16 | (float_to_bits(high) & 0xffff0000u);
    }
  }

  // v_perm_b32: a selector of 8 bits picks one of 8 bytes, of which the second operand has the lower four.
  __device__ __forceinline__ static void look_up(const uint32_t (&table)[4], uint32_t codes, uint32_t (&values)[4]) {
    FDPP_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t every_second = codes >> 4 * i & 0x0f0f0f0f, select = every_second & 0x07070707,
                     upper = (every_second >> 1 & 0x04040404) | 0x03020100;
      const uint32_t low = __builtin_amdgcn_perm(table[1], table[0], select),
                     high = __builtin_amdgcn_perm(table[3], table[2], select);
      values[i] = __builtin_amdgcn_perm(high, low, upper);
      values[2 + i] = values[i] >> 8;
    }
  }

 private:
  using Words = uint32_t __attribute__((ext_vector_type(4)));
  // What an access of so many bytes is one of.
  template <int kBytes>
  using PlainOf =
      std::conditional_t<kBytes == 16, Words,
                         std::conditional_t<kBytes == 8, uint64_t,
                                            std::conditional_t<kBytes == 4, uint32_t,
                                                               std::conditional_t<kBytes == 2, uint16_t, uint8_t>>>>;

  // v_cvt_f16_f32 rounds to nearest even, and there is no such instruction for bf16.
  template <typename T>
  __device__ __forceinline__ static uint16_t round(float x) {
    if constexpr (__is_same(T, f16)) {
      return __builtin_bit_cast(uint16_t, static_cast<_Float16>(x));
    } else {
      return from_float<T>(x).bits;
    }
  }
};

}  // namespace fdpp::hip
