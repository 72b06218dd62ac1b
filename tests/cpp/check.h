// A small test harness, and buffers that are exactly as large as they must be, so that AddressSanitizer sees every
// element read or written beyond a tensor.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/dtype.h"
#include "cpu/parallel.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(pointer, bytes) ((void)(pointer), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(pointer, bytes) ((void)(pointer), (void)(bytes))
#endif

namespace fdpp::test {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

#define TEST(name)                                                  \
  static void name();                                               \
  static const ::fdpp::test::Register register_##name(#name, name); \
  static void name()

inline int& failures() {
  static int count = 0;
  return count;
}

inline void check(bool ok, const char* file, int line, const std::string& what) {
  if (ok) return;
  ++failures();
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

#define CHECK(condition, what) \
  ::fdpp::test::check((condition), __FILE__, __LINE__, std::string(#condition " -- ") + (what))

// |actual - expected| <= tolerance, or both NaN.
inline void check_close(double actual, double expected, double tolerance, const char* file, int line,
                        const std::string& what) {
  const bool ok =
      std::fabs(actual - expected) <= tolerance || actual == expected || (std::isnan(actual) && std::isnan(expected));
  check(ok, file, line,
        ok ? what
           : what + ": got " + std::to_string(actual) + ", expected " + std::to_string(expected) + ", tolerance " +
                 std::to_string(tolerance));
}

#define CHECK_CLOSE(actual, expected, tolerance, what) \
  ::fdpp::test::check_close((actual), (expected), (tolerance), __FILE__, __LINE__, (what))

constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};
constexpr double kFloatRoundoff = 0x1p-24;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Relative error of rounding to nearest.
inline double roundoff(DType dtype) { return dtype == DType::f32 ? 0x1p-24 : dtype == DType::bf16 ? 0x1p-8 : 0x1p-11; }

// What rounding to the smallest numbers may lose.
inline double underflow(DType dtype) { return dtype == DType::f16 ? 0x1p-25 : 0x1p-126; }

using Random = std::mt19937_64;

inline int64_t pick(Random& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

// Elements of one dtype on the heap, aligned to 8 bytes, which is any element, and no further, or to 16.
class Buffer {
 public:
  Buffer(DType dtype, int64_t count, size_t alignment = 8)
      : dtype_(dtype), count_(count), shift_(alignment), bytes_(new char[bytes() + shift_]) {
    for (int64_t i = 0; i < count; ++i) set(i, kNan);
    // The allocator aligns to 16 bytes; a kernel must not rely on that.
    ASAN_POISON_MEMORY_REGION(bytes_.get(), shift_);
  }
  ~Buffer() { ASAN_UNPOISON_MEMORY_REGION(bytes_.get(), bytes() + shift_); }
  Buffer(const Buffer& other) : Buffer(other.dtype_, other.count_, other.shift_) {
    std::memcpy(data(), other.data(), bytes());
  }
  Buffer& operator=(const Buffer&) = delete;

  static Buffer normal(DType dtype, int64_t count, Random& random, double scale = 1.0, size_t alignment = 8) {
    Buffer buffer(dtype, count, alignment);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < count; ++i) buffer.set(i, scale * normal(random));
    return buffer;
  }

  char* data() const { return bytes_.get() + shift_; }
  char* at(int64_t i) const { return data() + i * size_of(dtype_); }
  int64_t count() const { return count_; }

  double operator[](int64_t i) const {
    switch (dtype_) {
      case DType::f32: return to_float(read<float>(i));
      case DType::bf16: return to_float(read<bf16>(i));
      case DType::f16: return to_float(read<f16>(i));
    }
    return kNan;
  }

  void set(int64_t i, double value) {
    const float narrow = static_cast<float>(value);
    switch (dtype_) {
      case DType::f32: write(i, narrow); break;
      case DType::bf16: write(i, from_float<bf16>(narrow)); break;
      case DType::f16: write(i, from_float<f16>(narrow)); break;
    }
  }

  // Elements [begin, end) must not be touched from here on.
  void forbid(int64_t begin, int64_t end) const {
    if (begin < end) ASAN_POISON_MEMORY_REGION(at(begin), (end - begin) * size_of(dtype_));
  }

 private:
  size_t bytes() const { return static_cast<size_t>(count_) * size_of(dtype_); }
  template <typename T>
  T read(int64_t i) const {
    T value;
    std::memcpy(&value, data() + i * sizeof(T), sizeof(T));
    return value;
  }
  template <typename T>
  void write(int64_t i, T value) {
    std::memcpy(data() + i * sizeof(T), &value, sizeof(T));
  }

  DType dtype_;
  int64_t count_;
  size_t shift_;
  std::unique_ptr<char[]> bytes_;
};

// Scratch of exactly this size, aligned as a caller aligns it.
struct AlignedDelete {
  void operator()(char* p) const { ::operator delete[](p, std::align_val_t{64}); }
};
using Scratch = std::unique_ptr<char[], AlignedDelete>;

inline Scratch scratch(int64_t bytes) {
  return Scratch(static_cast<char*>(::operator new[](static_cast<size_t>(bytes), std::align_val_t{64})));
}

// `count` threads of the standard library.
inline cpu::Threads threads(int count) {
  return {count, [](int n, void (*body)(void*), void* context) {
            std::vector<std::thread> workers;
            for (int i = 1; i < n; ++i) workers.emplace_back(body, context);
            body(context);
            for (std::thread& worker : workers) worker.join();
          }};
}

}  // namespace fdpp::test
