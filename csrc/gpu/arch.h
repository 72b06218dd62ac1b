// What a GPU kernel may ask of an architecture. Kernels are templates over a policy `Arch`, a struct of static
// functions: one per kind of hardware (csrc/cuda, csrc/hip) and its twin for the executor (csrc/simt), which runs the
// same kernels in every test.
//
// Execution
//   Arch::kWarpSize                              lanes of a warp: 32 or 64
//   int   Arch::thread_index(), block_index()    both flat
//   void  Arch::barrier()                        all threads of the block; afterwards they see shared and global writes
//                                                from before
//   void  Arch::warp_sync()                      all lanes of the warp; afterwards they see shared writes from before
//   bool  Arch::any(bool)                        whole warp
//   float Arch::shuffle_xor(float x, int mask)   whole warp: the x of lane ^ mask
//   int   Arch::shuffle(int x, int lane)         whole warp: the x of `lane`
//   void  Arch::wait_for_producers()             before the first read of another kernel's results, where launches may
//                                                overlap
//   void  Arch::launch_dependents()              the next kernel may start
// Memory
//   char* Arch::shared_memory()                  the block's shared memory, aligned to 16 bytes
//   T     Arch::shared_load(const T*)            T of 2, 4, 8 or 16 bytes, naturally aligned
//   void  Arch::shared_store(T*, T)
//   void  Arch::copy16(void* shared, const void* global, bool valid)
//                                                copies 16 bytes, asynchronously where the hardware can; when not
//                                                valid, writes zeros and reads no global memory. The bytes at `shared`
//                                                are undefined until the lane has waited and met others in warp_sync()
//                                                or barrier().
//   void  Arch::copy_commit()                    closes a group of this lane's copies
//   void  Arch::copy_wait<N>()                   waits until at most the N groups committed last are under way
//   Bytes16 Arch::load16(const void*)            16 bytes of global memory, aligned
//   void  Arch::store16(void*, Bytes16)          writes 16 bytes of global memory, aligned
//   Bytes16 Arch::stream_load(const void*)       16 bytes of read-only data that is used once (skips L1)
//   Word  Arch::stream_word<Word>(const void*)   the same, of a uint32_t or Bytes8, aligned
//   Word  Arch::load_word<Word>(const void*)     an unsigned integer of 1, 2 or 4 bytes, Bytes8 or Bytes16 of read-only
//                                                global memory, aligned
//   void  Arch::prefetch(const void*)            a hint: global memory that will be read, and may still be written
//   float Arch::coherent_load(const float*)      global memory that other blocks wrote before they arrived
//   Bytes16 Arch::coherent_load16(const void*)   16 bytes of such memory, aligned
//   void  Arch::publish()                        all threads, before the barrier() in front of arrive(): other blocks
//                                                can see this thread's global writes from there on
//   bool  Arch::arrive(int* counter, int count)  one thread of each of `count` blocks: whether it is the last. The last
//                                                can read what the others published (coherent loads), and finds the
//                                                counter at 0 again.
//   void  Arch::add(int64_t* global, int64_t)    atomic
// Arithmetic
//   float Arch::exp2(float)                      2^x within a few units in the last place; 0 for -infinity
//   uint32_t Arch::pack<T>(float low, float high)    two values rounded to nearest even
//   void  Arch::unpack<T>(uint32_t, float& low, float& high)    and back
//   uint32_t Arch::place<kMask, kBase>(uint32_t x)    (x & kMask) | kBase
//   uint32_t Arch::subtract<T>(uint32_t a, uint32_t b)    a - b, both of a pair; for differences that T holds exactly
//   void  Arch::look_up(const uint32_t (&table)[4], uint32_t codes, uint32_t (&values)[4])
//                                                eight codes of 4 bits, each the number of one of the 16 bytes of the
//                                                table: values[i] has that of code i as its byte 0, that of code 4 + i
//                                                as its byte 2, and anything as the others
// Matrices: what the policy's fragments (fragments_*.h) are built on; see there.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/macros.h"

namespace fdpp {

// Payloads of vector loads.
struct alignas(8) Bytes8 {
  uint32_t words[2];
};
struct alignas(16) Bytes16 {
  uint32_t words[4];
};

constexpr int kFragment = 16;  // fragments are 16 rows by 16 columns

}  // namespace fdpp
