// The policy of NVIDIA GPUs, compute capability 8.0 and above (gpu/arch.h, gpu/fragments_m16n8k16.h).
// Instructions: PTX ISA 9.0, sections named below; "9.7.x" is their chapter of the instruction set.
#pragma once

#include "cuda/device.h"

#include "gpu/arch.h"
#include "gpu/attention_tiles.h"
#include "gpu/fragments_m16n8k16.h"
#include "gpu/linear_tiles.h"

namespace fdpp::cuda {

struct Nvidia {
  static constexpr int kWarpSize = 32;
#ifdef __CUDA_ARCH__
  static constexpr bool kRunsHere = true;
#else
  static constexpr bool kRunsHere = false;  // the host's view of a kernel
#endif

  template <typename T>
  using Fragments = FragmentsM16N8K16<Nvidia, T>;
  static constexpr AttentionTiles attention_tiles(int head_dim, int tile) { return async_tiles(head_dim, tile); }
  static constexpr FlatTile flat_tile(int padded_m, int tile) { return async_flat_tile(padded_m, tile); }
  static constexpr GemvTile kGemvTile{8, 2, 4};

  // Execution
  __device__ __forceinline__ static int thread_index() { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ static int block_index() { return static_cast<int>(blockIdx.x); }
  __device__ __forceinline__ static void barrier() { __syncthreads(); }
  __device__ __forceinline__ static void warp_sync() { __syncwarp(); }
  __device__ __forceinline__ static bool any(bool x) { return __any_sync(kAllLanes, x); }
  __device__ __forceinline__ static float shuffle_xor(float x, int mask) { return __shfl_xor_sync(kAllLanes, x, mask); }
  __device__ __forceinline__ static int shuffle(int x, int lane) { return __shfl_sync(kAllLanes, x, lane); }

  // "Parallel Synchronization and Communication Instructions: griddepcontrol" (9.7.13)
  __device__ __forceinline__ static void wait_for_producers() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  }
  __device__ __forceinline__ static void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
  }

  // Memory
  __device__ __forceinline__ static char* shared_memory() {
    extern __shared__ __align__(16) char memory[];
    return memory;
  }

  template <typename T>
  __device__ __forceinline__ static T shared_load(const T* source) {
    if constexpr (sizeof(T) == 16) {
      const uint4 x = *reinterpret_cast<const uint4*>(source);
      return __builtin_bit_cast(T, x);
    } else if constexpr (sizeof(T) == 8) {
      const uint2 x = *reinterpret_cast<const uint2*>(source);
      return __builtin_bit_cast(T, x);
    } else {
      return *source;
    }
  }

  template <typename T>
  __device__ __forceinline__ static void shared_store(T* target, T x) {
    if constexpr (sizeof(T) == 16) {
      *reinterpret_cast<uint4*>(target) = __builtin_bit_cast(uint4, x);
    } else if constexpr (sizeof(T) == 8) {
      *reinterpret_cast<uint2*>(target) = __builtin_bit_cast(uint2, x);
    } else {
      *target = x;
    }
  }

  // "Data Movement and Conversion Instructions: cp.async" (9.7.9): of the 16 bytes, src-size are read and the rest is
  // zero.
  __device__ __forceinline__ static void copy16(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
                 : "memory");
  }
  __device__ __forceinline__ static void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
  template <int N>
  __device__ __forceinline__ static void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
  }

  __device__ __forceinline__ static Bytes16 load16(const void* source) {
    return __builtin_bit_cast(Bytes16, *static_cast<const uint4*>(source));
  }
  __device__ __forceinline__ static void store16(void* target, const Bytes16& x) {
    *static_cast<uint4*>(target) = __builtin_bit_cast(uint4, x);
  }

  // "Data Movement and Conversion Instructions: ld.global.nc" (9.7.9): past L1, which activations may then keep.
  __device__ __forceinline__ static Bytes16 stream_load(const void* source) {
    Bytes16 x;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.words[0]), "=r"(x.words[1]), "=r"(x.words[2]), "=r"(x.words[3])
                 : "l"(__cvta_generic_to_global(source)));
    return x;
  }

  template <typename Word>
  __device__ __forceinline__ static Word stream_word(const void* source) {
    Word x;
    if constexpr (sizeof(Word) == 8) {
      asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];"
                   : "=r"(x.words[0]), "=r"(x.words[1])
                   : "l"(__cvta_generic_to_global(source)));
    } else {
      asm volatile("ld.global.nc.L1::no_allocate.L2::128B.u32 %0, [%1];"
                   : "=r"(x)
                   : "l"(__cvta_generic_to_global(source)));
    }
    return x;
  }
  template <typename Word>
  __device__ __forceinline__ static Word load_word(const void* source) {
    if constexpr (sizeof(Word) == 16) {
      return load16(source);
    } else if constexpr (sizeof(Word) == 8) {
      return __builtin_bit_cast(Bytes8, *static_cast<const uint2*>(source));
    } else {
      return *static_cast<const Word*>(source);
    }
  }

  // "Data Movement and Conversion Instructions: prefetch" (9.7.9): into L2, which is where others write to.
  __device__ __forceinline__ static void prefetch(const void* source) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(source)));
  }

  // Not from L1, which is not coherent.
  __device__ __forceinline__ static float coherent_load(const float* source) { return __ldcg(source); }
  __device__ __forceinline__ static Bytes16 coherent_load16(const void* source) {
    return __builtin_bit_cast(Bytes16, __ldcg(static_cast<const uint4*>(source)));
  }

  // The barrier puts the block's writes before the arrival of its one thread, whose release is cumulative ("Memory
  // Consistency Model: Causality Order").
  __device__ __forceinline__ static void publish() {}
  __device__ __forceinline__ static bool arrive(int* counter, int count) {
    int before;
    asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(__cvta_generic_to_global(counter))
                 : "memory");
    const bool last = before == count - 1;
    if (last) *counter = 0;
    return last;
  }
  __device__ __forceinline__ static void add(int64_t* target, int64_t x) {
    atomicAdd(reinterpret_cast<unsigned long long*>(target), static_cast<unsigned long long>(x));
  }

  // Arithmetic
  // "Floating Point Instructions: ex2" (9.7.3)
  __device__ __forceinline__ static float exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }

  // "Data Movement and Conversion Instructions: cvt" (9.7.9): the first source fills the upper half.
  template <typename T>
  __device__ __forceinline__ static uint32_t pack(float low, float high) {
    uint32_t x;
    if constexpr (__is_same(T, f16)) {
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
    } else {
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
    }
    return x;
  }

  template <typename T>
  __device__ __forceinline__ static void unpack(uint32_t x, float& low, float& high) {
    if constexpr (__is_same(T, f16)) {
      asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;\n}"
          : "=f"(low), "=f"(high)
          : "r"(x));
    } else {
      low = bits_to_float(x << 16);
      high = bits_to_float(x & 0xffff0000u);
    }
  }

  // "Logic and Shift Instructions: lop3" (9.7.8): one instruction, of which the compiler would make two.
  template <uint32_t kMask, uint32_t kBase>
  __device__ __forceinline__ static uint32_t place(uint32_t x) {
    constexpr int kAndOr = (0xf0 & 0xcc) | 0xaa;
    uint32_t y;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(y) : "r"(x), "n"(kMask), "n"(kBase), "n"(kAndOr));
    return y;
  }

  // "Half Precision Floating Point Instructions: sub, fma" (9.7.4); bf16 has no sub before 9.0.
  template <typename T>
  __device__ __forceinline__ static uint32_t subtract(uint32_t a, uint32_t b) {
    uint32_t x;
    if constexpr (__is_same(T, f16)) {
      asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(x) : "r"(a), "r"(b));
    } else {
      constexpr uint32_t kMinusOnes = 0xbf80bf80;
      asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(x) : "r"(b), "r"(kMinusOnes), "r"(a));
    }
    return x;
  }

  // "Data Movement and Conversion Instructions: prmt" (9.7.9): a selector of 4 bits picks one of 8 bytes; its highest
  // bit would pick a sign.
  __device__ __forceinline__ static void look_up(const uint32_t (&table)[4], uint32_t codes, uint32_t (&values)[4]) {
    const uint32_t selectors = codes & 0x77777777, upper = (codes >> 1 & 0x44444444) | 0x32103210;
    uint32_t bytes[2];
    FDPP_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t select = selectors >> 16 * i;
      bytes[i] = __byte_perm(__byte_perm(table[0], table[1], select), __byte_perm(table[2], table[3], select),
                             upper >> 16 * i);
    }
    FDPP_UNROLL
    for (int i = 0; i < 4; ++i) values[i] = __byte_perm(bytes[0], bytes[1], 0x0400 + 0x0101 * i);
  }

  // Matrices
  // "Warp-level matrix load instruction: ldmatrix" (9.7.14)
  __device__ __forceinline__ static void matrix_load(uint32_t (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
  __device__ __forceinline__ static void matrix_load_transposed(uint32_t (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(row))
                 : "memory");
  }

  // "Multiply-and-Accumulate Instruction: mma" (9.7.14)
  template <typename T>
  __device__ __forceinline__ static void multiply(float* c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    float d[4];  // apart from c, which may be a constant 0
    if constexpr (__is_same(T, f16)) {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
          : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
    } else {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
          : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
    }
    FDPP_UNROLL
    for (int i = 0; i < 4; ++i) c[i] = d[i];
  }

 private:
  static constexpr unsigned kAllLanes = 0xffffffffu;

  __device__ __forceinline__ static uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
  }
};

}  // namespace fdpp::cuda
