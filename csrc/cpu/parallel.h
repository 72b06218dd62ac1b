// The caller's thread pool, as the kernels see it.
#pragma once

#include <atomic>
#include <cstdint>

#include "cpu/recording.h"

namespace fdpp::cpu {

// `run(n, body, context)` calls body(context) on up to n threads at once and returns when all are done.
struct Threads {
  int count;
  void (*run)(int n, void (*body)(void* context), void* context);
  Recording* recording = nullptr;  // where work is recorded instead
};

constexpr int64_t kSerialBytes = 16 << 10;      // less than this takes a thread less time than waking another
constexpr int64_t kLeastPieceBytes = 16 << 10;  // that a thread takes at a time

inline Threads threads_for(int64_t bytes, const Threads& threads) {
  return {bytes < kSerialBytes ? 1 : threads.count, threads.run, threads.recording};
}

// What the kernels read from memory for work on [0, total): as many records of that many bytes.
struct Weights {
  const void* data;
  int64_t record_bytes;
  bool is_repeatable;  // see Work
};

// Runs fn(begin, end) over [0, total) in pieces that are multiples of `multiple`: large ones first, smaller ones
// towards the end, never less than `least`. Threads take pieces as they finish, so that a slow core takes fewer and all
// end together; which thread runs a piece never shows in a result. fn may run later, when `threads` records: what it
// refers to must live as long as the recording.
template <typename Fn>
void for_each_piece(const Threads& threads, int64_t total, int64_t multiple, int64_t least, Fn fn,
                    const Weights& weights = {nullptr, 0, false}) {
  if (threads.recording != nullptr) {
    if (total == 0) return;
    return threads.recording->add({total, multiple, least, threads.count <= 1 || total <= least, fn, nullptr,
                                   weights.data == nullptr ? WorkKind::others : WorkKind::weights,
                                   weights.is_repeatable, static_cast<const char*>(weights.data),
                                   weights.record_bytes});
  }
  struct Context {
    std::atomic<int64_t> next{0};
    int64_t total, multiple, least, shares;
    Fn* fn;
  } context;
  context.total = total;
  context.multiple = multiple;
  context.least = least > multiple ? least : multiple;
  context.shares = 2 * threads.count;
  context.fn = &fn;
  const auto body = [](void* opaque) {
    Context& shared = *static_cast<Context*>(opaque);
    int64_t begin = shared.next.load(std::memory_order_relaxed);
    while (begin < shared.total) {
      const int64_t share = (shared.total - begin) / shared.shares;
      const int64_t wanted = share > shared.least ? share : shared.least;
      const int64_t end = begin + (wanted + shared.multiple - 1) / shared.multiple * shared.multiple;
      if (!shared.next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
      (*shared.fn)(begin, end < shared.total ? end : shared.total);
      begin = shared.next.load(std::memory_order_relaxed);
    }
  };
  const int64_t pieces = (total + context.least - 1) / context.least;
  const int workers = pieces < threads.count ? static_cast<int>(pieces) : threads.count;
  if (workers <= 1) {
    if (total > 0) fn(int64_t{0}, total);
  } else {
    threads.run(workers, body, &context);
  }
}

// Runs fn() once, on one thread.
template <typename Fn>
void once(const Threads& threads, Fn fn) {
  for_each_piece({1, threads.run, threads.recording}, 1, 1, 1, [fn](int64_t, int64_t) { fn(); });
}

// Runs fn(i) for every i in [0, items), one at a time.
template <typename Fn>
void for_each_item(const Threads& threads, int64_t items, Fn fn) {
  for_each_piece(threads, items, 1, 1, [fn](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) fn(i);
  });
}

}  // namespace fdpp::cpu
