#include "simt/fiber.h"

#include <cstdint>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// swapcontext() makes a system call per switch, and _FORTIFY_SOURCE forbids longjmp() to another stack. Registers that
// a call preserves: "System V Application Binary Interface, AMD64", 3.2; "Procedure Call Standard for the Arm 64-bit
// Architecture", 6.1.
#if defined(__x86_64__)
asm(R"(
  .text
  .p2align 4
  .hidden fdpp_simt_switch
  .globl fdpp_simt_switch
  .type fdpp_simt_switch, @function
fdpp_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size fdpp_simt_switch, . - fdpp_simt_switch
)");
#elif defined(__aarch64__)
asm(R"(
  .text
  .p2align 4
  .hidden fdpp_simt_switch
  .globl fdpp_simt_switch
  .type fdpp_simt_switch, %function
fdpp_simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size fdpp_simt_switch, . - fdpp_simt_switch
)");
#endif

#if defined(__x86_64__) || defined(__aarch64__)
extern "C" void fdpp_simt_switch(void** save, void* load);
#endif

namespace fdpp::simt {

#ifdef __SANITIZE_ADDRESS__
namespace {
thread_local Fiber* left = nullptr;  // by the switch that is under way
}
#endif

void Fiber::start(void* bottom, size_t bytes, void (*entry)()) {
  bottom_ = bottom;
  bytes_ = bytes;
  forget(bottom, bytes);
  [[maybe_unused]] uintptr_t* top = reinterpret_cast<uintptr_t*>(static_cast<char*>(bottom) + bytes);
#if defined(__x86_64__)
  // What the switch pops: six registers and the address to return to, and above them entry's own return address, none.
  top -= 8;
  for (int i = 0; i < 8; ++i) top[i] = 0;
  top[6] = reinterpret_cast<uintptr_t>(entry);
  stack_pointer_ = top;
#elif defined(__aarch64__)
  top -= 20;
  for (int i = 0; i < 20; ++i) top[i] = 0;
  top[11] = reinterpret_cast<uintptr_t>(entry);
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = bottom;
  context_.uc_stack.ss_size = bytes;
  makecontext(&context_, entry, 0);
#endif
}

void Fiber::forget([[maybe_unused]] void* bottom, [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(bottom, bytes);
#endif
}

void Fiber::entered() {
#ifdef __SANITIZE_ADDRESS__
  // This is how the bounds of a host thread's own stack become known.
  const void* bottom;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &left->bytes_);
  left->bottom_ = const_cast<void*>(bottom);
#endif
}

void Fiber::run(Fiber& from, Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack;
  left = &from;
  __sanitizer_start_switch_fiber(&fake_stack, to.bottom_, to.bytes_);
#endif
#if defined(__x86_64__) || defined(__aarch64__)
  fdpp_simt_switch(&from.stack_pointer_, to.stack_pointer_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

}  // namespace fdpp::simt
