#include "torch/arguments/cache.h"

namespace fdpp {

namespace {

CacheView view_of(const Tensor& cache) { return {cache.data_ptr(), cache.stride(0), cache.stride(1), cache.stride(2)}; }

}  // namespace

Cache cache_of(const char* op, const Argument& q, int64_t batch, int64_t head_dim, const Tensor& k_cache,
               const Tensor& v_cache, const OptionalTensor& block_table) {
  const Argument k(op, "k_cache", k_cache), v(op, "v_cache", v_cache);
  const bool paged = block_table.has_value();
  const char* dims = paged ? "[blocks, page, Hkv, D]" : "[B, S, Hkv, D]";
  k.same_device_as(q).same_dtype_as(q).shape(dims, {paged ? kAnySize : batch, kAnySize, kAnySize, head_dim});
  k.last_dim_contiguous();
  v.same_device_as(q).same_dtype_as(q).shape(dims, {k_cache.size(0), k_cache.size(1), k_cache.size(2), head_dim});
  v.last_dim_contiguous();
  const int64_t slots = k_cache.size(1);
  Cache cache{view_of(k_cache),
              view_of(v_cache),
              {nullptr, 0, slots, k_cache.size(0)},
              checked_int(op, "the number of kv heads", k_cache.size(2)),
              slots};
  if (paged) {
    const Argument table(op, "block_table", *block_table);
    table.same_device_as(q).dtype(ScalarType::Int).shape("[B, max_pages]", {batch, kAnySize}).last_dim_contiguous();
    if (slots == 0) k.fail("have pages of at least one slot");
    cache.layout.block_table = static_cast<const int32_t*>(block_table->data_ptr());
    cache.layout.block_table_stride = block_table->stride(0);
    cache.capacity = slots * block_table->size(1);
  }
  checked_int(op, "the capacity of a sequence's cache", cache.capacity);
  return cache;
}

std::string describe_capacity(const CacheLayout& layout, int64_t capacity) {
  const std::string text = "the cache's capacity " + std::to_string(capacity);
  if (layout.block_table == nullptr) return text;
  return text + " (block_table has " + std::to_string(capacity / layout.page_size) + " columns of " +
         std::to_string(layout.page_size) + "-token pages)";
}

void check_page(const char* op, const CacheLayout& layout, int64_t batch, int64_t page) {
  if (layout.block_table == nullptr) return;
  const int32_t block = layout.block_table[batch * layout.block_table_stride + page];
  if (block < 0 || block >= layout.num_blocks) {
    fail(op, "block_table[" + std::to_string(batch) + ", " + std::to_string(page) + "] must name one of " +
                 std::to_string(layout.num_blocks) + " blocks; got " + std::to_string(block));
  }
}

void check_pages(const char* op, const CacheLayout& layout, int64_t batch, int64_t slots) {
  if (layout.block_table == nullptr) return;
  const int64_t pages = (slots + layout.page_size - 1) / layout.page_size;
  for (int64_t page = 0; page < pages; ++page) check_page(op, layout, batch, page);
}

}  // namespace fdpp
