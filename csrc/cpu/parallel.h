// The caller's thread pool, as the kernels see it.
#pragma once

#include <atomic>
#include <cstdint>

namespace fdpp::cpu {

// `run(n, body, context)` calls body(context) on up to n threads at once and returns when all are done.
struct Threads {
  int count;
  void (*run)(int n, void (*body)(void* context), void* context);
};

// Runs fn(i) for every i in [0, items). Threads take items one by one, so that a slow core takes fewer; which thread runs
// an item never shows in a result.
template <typename Fn>
void for_each_item(const Threads& threads, int64_t items, Fn fn) {
  struct Context {
    std::atomic<int64_t> next{0};
    int64_t items;
    Fn* fn;
  } context;
  context.items = items;
  context.fn = &fn;
  const auto body = [](void* opaque) {
    Context& shared = *static_cast<Context*>(opaque);
    for (int64_t i; (i = shared.next.fetch_add(1, std::memory_order_relaxed)) < shared.items;) (*shared.fn)(i);
  };
  const int workers = items < threads.count ? static_cast<int>(items) : threads.count;
  if (workers <= 1) {
    body(&context);
  } else {
    threads.run(workers, body, &context);
  }
}

}  // namespace fdpp::cpu
