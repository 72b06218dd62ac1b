// Memory for the stacks of fibers.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <new>

#include "simt/fiber.h"

namespace fdpp::simt {

// Each above a page that nobody may touch.
class Stacks {
 public:
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  ~Stacks() { release(); }

  void reserve(int count) {
    if (count <= count_) return;
    release();
    page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, count * stride(), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    count_ = count;
    for (int i = 0; i < count; ++i) mprotect(memory_ + i * stride(), page_, PROT_NONE);
  }

  char* bottom(int i) const { return memory_ + i * stride() + page_; }
  // Tops of stacks that all lay alike in their pages would share few cache sets.
  static size_t bytes(int i) { return kStackBytes - static_cast<size_t>(i % 8) * 512; }

 private:
  static constexpr size_t kStackBytes = 128 * 1024;  // address space: only what is touched becomes memory

  size_t stride() const { return kStackBytes + page_; }
  void release() {
    if (count_ == 0) return;
    Fiber::forget(memory_, count_ * stride());
    munmap(memory_, count_ * stride());
    count_ = 0;
  }

  char* memory_ = nullptr;
  size_t page_ = 0;
  int count_ = 0;
};

}  // namespace fdpp::simt
