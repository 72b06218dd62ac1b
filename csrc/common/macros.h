// Qualifiers of functions that several compilations of the same header share.
#pragma once

// What a device compiler wants in front of a function; the backend's first header defines it.
#ifndef FDPP_DEVICE
#define FDPP_DEVICE
#endif

// In front of a loop that keeps its arrays in registers only when it is unrolled, wholly or by a constant. Compilers of
// GPUs define them (device.h); the host's compiler unrolls as it likes.
#ifndef FDPP_UNROLL
#define FDPP_UNROLL
#define FDPP_UNROLL_BY(count)
#endif

// A function that other kernels share, as one where the host compiles them all.
#ifndef FDPP_OUTLINE
#define FDPP_OUTLINE __attribute__((noinline))
#endif

// Always inlined: the same header is compiled for several instruction sets, and an out-of-line copy of one of them must
// never be picked by the linker for another.
#define FDPP_INLINE FDPP_DEVICE inline __attribute__((always_inline))
