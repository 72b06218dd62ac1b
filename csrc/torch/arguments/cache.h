// Checks and views of a KV cache, shared by the operators that read and write it.
#pragma once

#include "common/params.h"
#include "torch/arguments/checks.h"

namespace fdpp {

struct Cache {
  CacheView k, v;
  CacheLayout layout;
  int kv_heads;
  int64_t capacity;  // slots per sequence
};

// k_cache and v_cache [B, S, Hkv, D] or, with a block table, [blocks, page, Hkv, D], on the device and of the dtype of
// q.
Cache cache_of(const char* op, const Argument& q, int64_t batch, int64_t head_dim, const Tensor& k_cache,
               const Tensor& v_cache, const OptionalTensor& block_table);

// "the cache's capacity 512 (block_table has 2 columns of 256-token pages)"
std::string describe_capacity(const CacheLayout& layout, int64_t capacity);

// For a block table in host memory: the block of a page of a sequence exists.
void check_page(const char* op, const CacheLayout& layout, int64_t batch, int64_t page);
// The same for all pages of its first `slots` slots.
void check_pages(const char* op, const CacheLayout& layout, int64_t batch, int64_t slots);

}  // namespace fdpp
