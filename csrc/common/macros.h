// Qualifiers of small functions that several compilations of the same header share.
#pragma once

// Always inlined: the same header is compiled for several instruction sets, and an out-of-line copy of one of them must
// never be picked by the linker for another.
#define FDPP_INLINE inline __attribute__((always_inline))
