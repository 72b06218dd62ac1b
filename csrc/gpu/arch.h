// What a GPU kernel may ask of an architecture. Kernels are templates over a policy `P`, a struct of static functions:
// one per kind of hardware (csrc/cuda, csrc/hip) and its twin on the host (csrc/simt), which runs the same kernels in
// every test.
//
// Execution
//   P::kWarpSize                              lanes of a warp: 32 or 64
//   int   P::thread_index(), P::block_index() both flat
//   void  P::barrier()                        all threads of the block; shared and global writes before it are seen after it
//   void  P::warp_sync()                      all lanes of the warp; shared writes before it are seen after it
//   bool  P::any(bool)                        whole warp
//   float P::shuffle_xor(float x, int mask)   whole warp: the x of lane ^ mask
//   int   P::shuffle(int x, int lane)         whole warp: the x of `lane`
//   void  P::wait_for_producers()             before the first read of another kernel's results, where launches may overlap
//   void  P::launch_dependents()              the next kernel may start
// Memory
//   char* P::shared_memory()                  the block's shared memory, aligned to 16 bytes
//   T     P::shared_load(const T*)            T of 2, 4, 8 or 16 bytes, naturally aligned
//   void  P::shared_store(T*, T)
//   void  P::copy16(void* shared, const void* global, bool valid)    16 bytes, asynchronous where the hardware can; zeros and
//                                             no read of global memory when not valid. The bytes at `shared` are undefined
//                                             until the lane has waited and met others in warp_sync() or barrier().
//   void  P::copy_commit()                    closes a group of this lane's copies
//   void  P::copy_wait<N>()                   waits until at most the N groups committed last are under way
//   Bytes16 P::load16(const void*)            16 bytes of global memory, aligned
//   void  P::store16(void*, Bytes16)          likewise
//   Bytes16 P::stream_load(const void*)       likewise, of what nobody writes and nobody reads twice
//   void  P::prefetch(const void*)            global memory that will be read; a hint, and what it finds may still be written
//   float P::coherent_load(const float*)      global memory that other blocks wrote before they arrived
//   Bytes16 P::coherent_load16(const void*)   likewise, 16 bytes, aligned
//   void  P::publish()                        all threads, before the barrier() in front of arrive(): this thread's global writes
//                                             can be seen by other blocks from there on
//   bool  P::arrive(int* counter, int count)  one thread of each of `count` blocks: whether it is the last, which can read what
//                                             the others published (coherent loads) and finds the counter at 0 again
//   void  P::add(int64_t* global, int64_t)    atomic
// Arithmetic
//   float P::exp2(float)                      2^x within a few units in the last place; 0 for -infinity
//   uint32_t P::pack<T>(float low, float high)   two values rounded to nearest even
//   void  P::unpack<T>(uint32_t, float& low, float& high)    and back
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
