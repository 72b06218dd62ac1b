// Addresses in a contiguous or paged KV cache.
#pragma once

#include "common/macros.h"
#include "common/params.h"

namespace fdpp::cpu {

struct Slot {
  int64_t block, offset;
};

FDPP_INLINE Slot slot_of(const CacheLayout& layout, int64_t batch, int64_t position) {
  if (layout.block_table == nullptr) return {batch, position};
  const int64_t page = position / layout.page_size;
  return {layout.block_table[batch * layout.block_table_stride + page], position - page * layout.page_size};
}

template <typename T>
FDPP_INLINE T* slot_pointer(const CacheView& cache, Slot slot) {
  return static_cast<T*>(cache.data) + slot.block * cache.block_stride + slot.offset * cache.token_stride;
}

}  // namespace fdpp::cpu
