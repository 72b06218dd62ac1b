// What the policies of the host have in common (gpu/arch.h); what each adds are its matrix instructions and its
// copies.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "gpu/arch.h"
#include "simt/executor.h"

namespace fdpp::simt {

// Element i of packed words.
template <typename T>
float element(uint32_t word, int i) {
  return to_float(T{static_cast<uint16_t>(word >> 16 * i)});
}

template <int kLanes>
struct Host {
  static constexpr int kWarpSize = kLanes;

  // Execution
  static int thread_index() { return context.thread; }
  static int block_index() { return context.block; }
  static void barrier(Where where = Where::current()) { simt::barrier(where); }

  static void warp_sync(Where where = Where::current()) { simt::warp_sync(where); }

  static bool any(bool x, Where where = Where::current()) {
    const auto run = [](bool* const* x) {
      bool result = false;
      for (int i = 0; i < kLanes; ++i) result |= *x[i];
      for (int i = 0; i < kLanes; ++i) *x[i] = result;
    };
    meet("any", x, run, where);
    return x;
  }

  static float shuffle_xor(float x, int mask, Where where = Where::current()) {
    if (mask < 0 || mask >= kLanes) fail("shuffle_xor with mask %d", mask);
    return exchange("shuffle_xor", x, lane() ^ mask, where);
  }

  static int shuffle(int x, int source, Where where = Where::current()) {
    if (source < 0 || source >= kLanes) fail("shuffle from lane %d", source);
    return exchange("shuffle", x, source, where);
  }

  static void wait_for_producers() {}
  static void launch_dependents() {}

  // Memory
  static char* shared_memory() { return context.shared; }

  template <typename T>
  static T shared_load(const T* source) {
    check_shared(source, sizeof(T), "load");
    return *source;
  }

  template <typename T>
  static void shared_store(T* target, T x) {
    check_shared(target, sizeof(T), "store");
    *target = x;
  }

  // Through registers.
  static void copy16(void* shared, const void* global, bool valid) {
    check_copy(shared, valid ? global : nullptr);
    simt::copy16(shared, valid ? global : nullptr);
  }
  static void copy_commit() {}
  template <int N>
  static void copy_wait() {}

  static Bytes16 load16(const void* source) {
    check_global(source, sizeof(Bytes16), "load16");
    return *static_cast<const Bytes16*>(source);
  }
  static void store16(void* target, const Bytes16& x) {
    check_global(target, sizeof(Bytes16), "store16");
    *static_cast<Bytes16*>(target) = x;
  }
  static Bytes16 stream_load(const void* source) { return load16(source); }
  template <typename Word>
  static Word stream_word(const void* source) {
    return load_word<Word>(source);
  }
  template <typename Word>
  static Word load_word(const void* source) {
    check_global(source, sizeof(Word), "load_word");
    return *static_cast<const Word*>(source);
  }
  static void prefetch(const void* source) { static_cast<void>(*static_cast<const volatile char*>(source)); }

  static float coherent_load(const float* source) { return *source; }
  static Bytes16 coherent_load16(const void* source) {
    check_global(source, sizeof(Bytes16), "coherent_load16");
    return *static_cast<const Bytes16*>(source);
  }
  static void publish() { simt::publish(); }
  static bool arrive(int* counter, int count) {
    check_arrival(*counter, count);
    const bool last = *counter == count - 1;
    *counter = last ? 0 : *counter + 1;
    return last;
  }
  static void add(int64_t* target, int64_t x) { *target += x; }

  // Arithmetic
  static float exp2(float x) { return ::exp2f(x); }

  template <typename T>
  static uint32_t pack(float low, float high) {
    return uint32_t{from_float<T>(low).bits} | uint32_t{from_float<T>(high).bits} << 16;
  }
  template <typename T>
  static void unpack(uint32_t x, float& low, float& high) {
    low = to_float(T{static_cast<uint16_t>(x)});
    high = to_float(T{static_cast<uint16_t>(x >> 16)});
  }

  template <uint32_t kMask, uint32_t kBase>
  static uint32_t place(uint32_t x) {
    return (x & kMask) | kBase;
  }

  template <typename T>
  static uint32_t subtract(uint32_t a, uint32_t b) {
    const auto half = [=](int i) {
      const float x = element<T>(a, i) - element<T>(b, i);
      const uint16_t bits = from_float<T>(x).bits;
      if (to_float(T{bits}) != x) fail("subtract: %g is no number of the dtype", static_cast<double>(x));
      return uint32_t{bits} << 16 * i;
    };
    return half(0) | half(1);
  }

  static void look_up(const uint32_t (&table)[4], uint32_t codes, uint32_t (&values)[4]) {
    const auto byte = [&](int code) {
      const uint32_t number = codes >> 4 * code & 15;
      return table[number / 4] >> 8 * (number % 4) & 255;
    };
    constexpr uint32_t kAnything = 0xa5005a00;
    for (int i = 0; i < 4; ++i) values[i] = byte(i) | byte(4 + i) << 16 | kAnything;
  }

 protected:
  static int lane() { return context.thread % kLanes; }

 private:
  template <typename T>
  static T exchange(const char* name, T x, int source, Where where) {
    struct Operand {
      T x;
      int source;
      T result;
    } operand{x, source, {}};
    const auto run = [](Operand* const* lanes) {
      for (int i = 0; i < kLanes; ++i) lanes[i]->result = lanes[lanes[i]->source]->x;
    };
    meet(name, operand, run, where);
    return operand.result;
  }
};

// A matrix in the middle of a multiplication.
template <int kColumns>
struct Matrix {
  float x[kFragment][kColumns];
};

// c += a b; hardware sums in some order of its own. Rows as vectors: this is where most of the time goes.
template <int kColumns>
void multiply_add(Matrix<kColumns>& c, const Matrix<kFragment>& a, const Matrix<kColumns>& b) {
  typedef float Row __attribute__((vector_size(sizeof(float) * kColumns)));
  for (int i = 0; i < kFragment; ++i) {
    Row sum, row;
    std::memcpy(&sum, c.x[i], sizeof sum);
    for (int k = 0; k < kFragment; ++k) {
      std::memcpy(&row, b.x[k], sizeof row);
      sum += a.x[i][k] * row;
    }
    std::memcpy(c.x[i], &sum, sizeof sum);
  }
}

}  // namespace fdpp::simt
