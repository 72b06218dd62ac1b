// A thread of execution that is switched by hand: a stack, and the registers that a call preserves.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace fdpp::simt {

class Fiber {
 public:
  // Makes the next switch to this fiber call entry(), which never returns, on the stack [bottom, bottom + bytes).
  void start(void* bottom, size_t bytes, void (*entry)());

  // What was running on this stack is gone, and the memory may be used for anything.
  static void forget(void* bottom, size_t bytes);

  // Entry's first call.
  static void entered();

  // Saves the running fiber in `from` and runs `to`, until something switches back to `from`.
  static void run(Fiber& from, Fiber& to);

 private:
#if defined(__x86_64__) || defined(__aarch64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  // For AddressSanitizer, which follows stacks.
  void* bottom_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace fdpp::simt
