// Executes a GPU kernel on the host, thread by thread, as the most hostile GPU would: threads are fibers that run in a
// random order from rendezvous to rendezvous, shared memory starts as NaN, asynchronous copies happen as late as they
// may. What a GPU would get wrong without a word ends the launch with a report.
#pragma once

#include <cstdint>
#include <cstring>
#include <source_location>

namespace fdpp::simt {

using Where = std::source_location;  // the kernel's call of a primitive

struct Grid {
  int64_t blocks;
  int threads;  // of a block; whole warps
  int warp_size;
  int64_t shared_bytes;
};

// Runs kernel(argument) in every thread of the grid, the blocks one after another in a random order. One seed, one
// order. Throws std::runtime_error with the report of what went wrong. Host threads may launch at the same time.
void launch(const Grid& grid, uint64_t seed, void (*kernel)(const void*), const void* argument);

// What follows is for the policies, within a kernel.

// Who is running on this host thread.
struct Context {
  int thread;
  int block;
  char* shared;
  int64_t shared_bytes;
};
inline constinit thread_local Context context{};

// Ends the launch with a report that names the thread.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);

void barrier(Where where);
void warp_sync(Where where);

// A collective of the whole warp: returns after the last lane has come and run(operands) has computed for all lanes.
// Lanes that come to different collectives, or to different lines, have diverged.
void meet(const char* name, void (*run)(void* const* operands), void* operand, Where where);

// The same, with the operand's type; `run` is a lambda that captures nothing.
template <typename Operand, typename Run>
void meet(const char* name, Operand& operand, Run, Where where) {
  meet(name, [](void* const* operands) { Run{}(reinterpret_cast<Operand* const*>(operands)); }, &operand, where);
}

[[noreturn]] void fail_shared(const void* pointer, int64_t bytes, const char* what);

// An access to shared memory that is `bytes` long and wants to be aligned to as much.
inline void check_shared(const void* pointer, int64_t bytes, const char* what) {
  const int64_t offset = reinterpret_cast<intptr_t>(pointer) - reinterpret_cast<intptr_t>(context.shared);
  if (offset < 0 || offset + bytes > context.shared_bytes || offset % bytes != 0) fail_shared(pointer, bytes, what);
}

// Copies of 16 bytes to shared memory; zeros from null. Asynchronous ones are performed when the lane comes to a
// barrier() or warp_sync() after the wait that covers their group: before it, no other lane may count on them.
constexpr int64_t kCopyBytes = 16;

inline void check_global(const void* pointer, int64_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) fail("%s from %p: not aligned", what, pointer);
}

inline void check_copy(const void* shared, const void* global) {
  check_shared(shared, kCopyBytes, "copy16");
  check_global(global, kCopyBytes, "copy16");
}

inline void copy16(void* shared, const void* global) {
  if (global != nullptr) {
    std::memcpy(shared, global, kCopyBytes);
  } else {
    std::memset(shared, 0, kCopyBytes);
  }
}

// The executor sees all writes at once. It reports two mistakes: a thread of the block that did not publish() since the
// last arrival, and a counter outside 0..count - 1.
void publish();
void check_arrival(int counter, int count);

void issue_copy(void* shared, const void* global);
void commit_copies();
void wait_copies(int groups);

}  // namespace fdpp::simt
