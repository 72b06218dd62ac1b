// Whether strided tensors share memory: an operator that writes one while it reads another would compute from what it
// has just written. Views of one storage that interleave (keys and values side by side) share none.
#pragma once

#include <cstdint>

namespace fdpp {

// The bytes of a tensor: a run of contiguous ones for each index of the dimensions.
struct MemoryLayout {
  static constexpr int kMaxDims = 8;
  struct Dim {
    int64_t size, stride;  // bytes
  };

  uintptr_t begin, end;  // of the first byte, and after the last; equal where there is no element
  int64_t run;
  int dims;
  Dim dim[kMaxDims];  // none of size 1 or stride 0
  bool repeats;       // two indices may name one place: a stride is 0
};

// Dimensions that follow each other without a gap are merged. With more than kMaxDims left, the layout is all bytes
// between the first and the last, and counts as one that repeats. Strides count elements and are not negative.
MemoryLayout memory_layout(const void* data, int64_t element_bytes, const int64_t* sizes, const int64_t* strides,
                           int64_t dims);

// Exact, but for strides so irregular that the search is given up: they count as shared.
bool share_memory(const MemoryLayout& a, const MemoryLayout& b);

// Likewise, whether two elements of one tensor share memory.
bool overlaps_itself(const MemoryLayout& layout);

}  // namespace fdpp
