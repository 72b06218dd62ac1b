#include "common/memory_overlap.h"

#include <algorithm>

namespace fdpp {

namespace {

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }
int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

// The numbers sum k_i stride_i with low_i <= k_i <= high_i. Whether a number is one of them is searched term by term,
// the largest stride first: in most layouts the others reach no further than one stride, which leaves one or two k.
class Sums {
 public:
  // The terms of equal strides are one term. Strides are positive.
  void add(int64_t stride, int64_t low, int64_t high) {
    int i = 0;
    while (i < count_ && terms_[i].stride > stride) ++i;
    if (i < count_ && terms_[i].stride == stride) {
      terms_[i].low += low;
      terms_[i].high += high;
      return;
    }
    for (int j = count_++; j > i; --j) terms_[j] = terms_[j - 1];
    terms_[i] = {stride, low, high, 0, 0, false};
  }

  // The last term must have stride 1.
  bool contain(int64_t target) {
    int64_t least = 0, most = 0;
    bool dense = true;
    for (int i = count_ - 1; i >= 0; --i) {
      Term& term = terms_[i];
      dense = dense && term.stride <= most - least + 1;
      term.least = least += term.low * term.stride;
      term.most = most += term.high * term.stride;
      term.dense = dense;
    }
    steps_ = kMaxSteps;
    return contain(0, target);
  }

 private:
  static constexpr int kMaxSteps = 1000;

  struct Term {
    int64_t stride, low, high;
    int64_t least, most;  // of the sums of this term and those after it
    bool dense;           // they are all numbers in between
  };

  bool contain(int i, int64_t target) {
    const Term& term = terms_[i];
    if (target < term.least || target > term.most) return false;
    if (term.dense) return true;
    const Term& rest = terms_[i + 1];
    const int64_t last = std::min(term.high, floor_div(target - rest.least, term.stride));
    for (int64_t k = std::max(term.low, ceil_div(target - rest.most, term.stride)); k <= last; ++k) {
      if (--steps_ < 0 || contain(i + 1, target - k * term.stride)) return true;
    }
    return false;
  }

  Term terms_[2 * MemoryLayout::kMaxDims + 1];
  int count_ = 0, steps_ = 0;
};

}  // namespace

MemoryLayout memory_layout(const void* data, int64_t element_bytes, const int64_t* sizes, const int64_t* strides,
                           int64_t dims) {
  MemoryLayout layout;
  layout.begin = layout.end = reinterpret_cast<uintptr_t>(data);
  layout.run = element_bytes;
  layout.dims = 0;
  layout.repeats = false;
  // A meta tensor has no memory.
  if (data == nullptr || std::find(sizes, sizes + dims, 0) != sizes + dims) return layout;
  int64_t last = 0;
  bool fits = true;
  for (int64_t d = dims - 1; d >= 0; --d) {
    const int64_t size = sizes[d], stride = strides[d] * element_bytes;
    if (size == 1) continue;
    last += (size - 1) * stride;
    MemoryLayout::Dim* const inner = layout.dims > 0 ? &layout.dim[layout.dims - 1] : nullptr;
    if (stride == 0) {
      layout.repeats = true;
    } else if (inner == nullptr && stride == layout.run) {
      layout.run *= size;
    } else if (inner != nullptr && stride == inner->size * inner->stride) {
      inner->size *= size;
    } else if (layout.dims < MemoryLayout::kMaxDims) {
      layout.dim[layout.dims++] = {size, stride};
    } else {
      fits = false;
    }
  }
  layout.end = layout.begin + static_cast<uintptr_t>(last + element_bytes);
  if (!fits) {
    layout.run = last + element_bytes;
    layout.dims = 0;
    layout.repeats = true;
  }
  return layout;
}

bool share_memory(const MemoryLayout& a, const MemoryLayout& b) {
  if (a.begin == a.end || b.begin == b.end || a.end <= b.begin || b.end <= a.begin) return false;
  // a.begin + sum i stride + x = b.begin + sum j stride + y, for indices i, j and bytes x, y of the runs.
  Sums sums;
  sums.add(1, 1 - b.run, a.run - 1);
  for (int d = 0; d < a.dims; ++d) sums.add(a.dim[d].stride, 0, a.dim[d].size - 1);
  for (int d = 0; d < b.dims; ++d) sums.add(b.dim[d].stride, 1 - b.dim[d].size, 0);
  return sums.contain(static_cast<int64_t>(b.begin - a.begin));
}

bool overlaps_itself(const MemoryLayout& layout) {
  if (layout.begin == layout.end) return false;
  if (layout.repeats) return true;
  // Of the dimensions in which two indices differ, one has the largest stride; the others must make up for it.
  for (int d = 0; d < layout.dims; ++d) {
    const auto [size, stride] = layout.dim[d];
    Sums differences;
    differences.add(1, 1 - layout.run, layout.run - 1);
    differences.add(stride, 1, size - 1);
    for (int e = 0; e < layout.dims; ++e) {
      const auto [other_size, other_stride] = layout.dim[e];
      const bool smaller = other_stride < stride || (other_stride == stride && e < d);
      if (smaller) differences.add(other_stride, 1 - other_size, other_size - 1);
    }
    if (differences.contain(0)) return true;
  }
  return false;
}

}  // namespace fdpp
