#include "simt/executor.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "simt/fiber.h"
#include "simt/stacks.h"

namespace fdpp::simt {

namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxWarpSize = 64;
constexpr size_t kSharedAlignment = 128;
constexpr int kNan = 0xff;  // bytes of a NaN in every floating-point type

struct AlignedDelete {
  void operator()(char* p) const { ::operator delete[](p, std::align_val_t{kSharedAlignment}); }
};
using SharedMemory = std::unique_ptr<char[], AlignedDelete>;

struct Copy {
  void* to;
  const void* from;
  int64_t group;
};

struct Lane {
  Fiber fiber;
  const char* last_met = nullptr;  // name of the rendezvous that it came to last, and may still be waiting at
  Where where;
  std::vector<Copy> copies;  // issued and not performed
  size_t landed = 0;         // the first of them that have been waited for
  int64_t groups = 0;        // committed
  bool left = false;

  // The copies that have landed.
  void perform() {
    for (size_t i = 0; i < landed; ++i) copy16(copies[i].to, copies[i].from);
    copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(landed));
    landed = 0;
  }
};

struct Warp {
  int first;                    // thread
  uint8_t order[kMaxWarpSize];  // the first `ready` are the lanes that may run, the others wait or have left
  int ready;
  int slot;  // in Executor::ready_warps_, when any lane is ready
  int arrived;
  // What the lanes that have arrived have in common, and have posted.
  void (*run)(void* const*);
  const char* name;
  Where where;
  void* operands[kMaxWarpSize];
};

// In a buffer: kernels that are given up never run destructors.
struct Text {
  Text(const char* name, Where where) {
    const char* slash = std::strrchr(where.file_name(), '/');
    std::snprintf(chars, sizeof chars, "%s (%s:%u)", name, slash == nullptr ? where.file_name() : slash + 1,
                  where.line());
  }
  char chars[128];
};

bool same(Where x, Where y) { return x.line() == y.line() && x.column() == y.column(); }

[[noreturn]] void diverged(const char* name, Where where, const char* other_name, Where other) {
  fail("diverged: it is at %s, others wait at %s", Text(name, where).chars, Text(other_name, other).chars);
}

class Executor {
 public:
  void launch(const Grid& grid, uint64_t seed, void (*kernel)(const void*), const void* argument);

  void barrier(Where where);
  void publish() { ++published_; }
  void check_arrival(int counter, int count);
  void meet(const char* name, void (*run)(void* const*), void* operand, Where where);
  Lane& lane() { return lanes_[context.thread]; }
  [[noreturn]] void fail(const char* format, std::va_list arguments);

 private:
  static void entry();

  void run_block(int block);
  std::string deadlock() const;
  void make_ready(Warp& warp);
  Fiber& next();
  void yield();

  // SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
  uint64_t random() {
    uint64_t x = random_ += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  static int below(int limit, uint32_t random) { return static_cast<int>(uint64_t{random} * limit >> 32); }

  Grid grid_{};
  void (*kernel_)(const void*) = nullptr;
  const void* argument_ = nullptr;
  uint64_t random_ = 0;
  uint32_t stay_ = 0;  // of 2^32: how often the lane that runs next is of the same warp

  Fiber launcher_;
  Stacks stacks_;
  std::vector<Lane> lanes_;
  std::vector<Warp> warps_;
  Warp* current_warp_ = nullptr;    // of the lane that runs
  std::vector<Warp*> ready_warps_;  // the first num_ready_warps_
  int num_ready_warps_ = 0;
  int arrived_ = 0;      // at the barrier
  Where barrier_where_;  // of the first that arrived
  int left_ = 0;
  int published_ = 0;

  SharedMemory shared_;
  int64_t shared_capacity_ = 0;
  std::vector<int> blocks_;
  bool failed_ = false;
  char report_[1024];
};

constinit thread_local Executor* running = nullptr;

void Executor::launch(const Grid& grid, uint64_t seed, void (*kernel)(const void*), const void* argument) {
  if (grid.blocks < 0 || grid.blocks > INT32_MAX || grid.threads <= 0 || grid.threads > kMaxThreads ||
      grid.warp_size > kMaxWarpSize || grid.threads % grid.warp_size != 0 || grid.shared_bytes < 0) {
    throw std::runtime_error("simt: no such grid");
  }
  grid_ = grid;
  kernel_ = kernel;
  argument_ = argument;
  random_ = seed;
  stacks_.reserve(grid.threads);
  lanes_.resize(std::max(lanes_.size(), static_cast<size_t>(grid.threads)));
  warps_.resize(grid.threads / grid.warp_size);
  ready_warps_.resize(warps_.size());
  if (grid.shared_bytes > shared_capacity_) {
    shared_.reset(static_cast<char*>(::operator new[](grid.shared_bytes, std::align_val_t{kSharedAlignment})));
    shared_capacity_ = grid.shared_bytes;
  }

  blocks_.resize(grid.blocks);
  std::iota(blocks_.begin(), blocks_.end(), 0);
  for (int remaining = static_cast<int>(grid.blocks); remaining > 0; --remaining) {
    std::swap(blocks_[below(remaining, static_cast<uint32_t>(random()))], blocks_[remaining - 1]);
    run_block(blocks_[remaining - 1]);
  }
}

void Executor::run_block(int block) {
  // Warps in lock step, or one far ahead of the others: which of the two shows a missing barrier depends on the kernel.
  constexpr uint32_t kStay[] = {0, 0xc0000000u, 0xfc000000u, 0xffffffffu};
  stay_ = kStay[random() % std::size(kStay)];
  context = {0, block, shared_.get(), grid_.shared_bytes};
  std::fill_n(shared_.get(), grid_.shared_bytes, static_cast<char>(kNan));
  failed_ = false;
  arrived_ = left_ = num_ready_warps_ = published_ = 0;
  for (int i = 0; i < grid_.threads; ++i) {
    Lane& lane = lanes_[i];
    lane.fiber.start(stacks_.bottom(i), Stacks::bytes(i), entry);
    lane.copies.clear();
    lane.landed = 0;
    lane.groups = 0;
    lane.left = false;
  }
  for (int i = 0; i < static_cast<int>(warps_.size()); ++i) {
    Warp& warp = warps_[i];
    std::iota(warp.order, warp.order + grid_.warp_size, uint8_t{0});
    warp.first = i * grid_.warp_size;
    warp.arrived = 0;
    make_ready(warp);
  }
  current_warp_ = warps_.data();
  Fiber::run(launcher_, next());
  if (failed_) throw std::runtime_error(report_);
  if (left_ < grid_.threads) throw std::runtime_error(deadlock());
}

// All lanes of a warp that have been taken from its order.
void Executor::make_ready(Warp& warp) {
  warp.ready = grid_.warp_size;
  warp.slot = num_ready_warps_;
  ready_warps_[num_ready_warps_++] = &warp;
}

// Who runs next: a lane that may, or the launcher when there is none.
Fiber& Executor::next() {
  const uint64_t bits = random();
  const uint32_t low = static_cast<uint32_t>(bits), high = static_cast<uint32_t>(bits >> 32);
  if (current_warp_->ready == 0 || high > stay_) {
    if (num_ready_warps_ == 0) return launcher_;
    current_warp_ = ready_warps_[below(num_ready_warps_, low * 0x9e3779b9u)];
  }
  Warp& warp = *current_warp_;
  const int i = below(warp.ready, low);
  const uint8_t lane = warp.order[i];
  std::swap(warp.order[i], warp.order[--warp.ready]);
  if (warp.ready == 0) {
    ready_warps_[warp.slot] = ready_warps_[--num_ready_warps_];
    ready_warps_[warp.slot]->slot = warp.slot;
  }
  context.thread = warp.first + lane;
  return lanes_[context.thread].fiber;
}

void Executor::yield() {
  Fiber& self = lane().fiber;
  Fiber& other = next();
  if (&self != &other) Fiber::run(self, other);
}

void Executor::entry() {
  Fiber::entered();
  Executor& self = *running;
  char what[256] = "";
  try {
    self.kernel_(self.argument_);
  } catch (const std::exception& error) {
    std::snprintf(what, sizeof what, "%s", error.what());
  }
  if (what[0] != 0) simt::fail("exception: %s", what);
  self.lane().left = true;
  ++self.left_;
  self.yield();  // for good: nobody makes this lane ready again
  __builtin_unreachable();
}

void Executor::barrier(Where where) {
  if (arrived_ == 0) barrier_where_ = where;
  if (!same(where, barrier_where_)) diverged("barrier", where, "barrier", barrier_where_);
  Lane& self = lane();
  self.last_met = "barrier";
  self.where = where;
  if (++arrived_ == grid_.threads) {
    arrived_ = 0;
    for (Warp& warp : warps_) make_ready(warp);
  }
  yield();
}

void Executor::check_arrival(int counter, int count) {
  if (published_ != grid_.threads)
    simt::fail("arrives when %d of %d threads have published", published_, grid_.threads);
  if (counter < 0 || counter >= count) simt::fail("arrives at a counter of %d, with %d blocks to come", counter, count);
  published_ = 0;
}

void Executor::meet(const char* name, void (*run)(void* const*), void* operand, Where where) {
  Warp& warp = *current_warp_;
  if (warp.arrived == 0) {
    warp.run = run;
    warp.name = name;
    warp.where = where;
  }
  if (run != warp.run || !same(where, warp.where)) diverged(name, where, warp.name, warp.where);
  Lane& self = lanes_[context.thread];
  self.last_met = name;
  self.where = where;
  warp.operands[context.thread - warp.first] = operand;
  if (++warp.arrived == grid_.warp_size) {
    warp.arrived = 0;
    run(warp.operands);
    make_ready(warp);
  }
  yield();
}

// Nobody can run, and somebody waits: who waits where.
std::string Executor::deadlock() const {
  std::map<std::string, std::string> threads_at;
  const auto state = [&](int i) {
    const Lane& lane = lanes_[i];
    return lane.left ? std::string("have left the kernel")
                     : std::string("wait at ") + Text(lane.last_met, lane.where).chars;
  };
  for (int i = 0, end; i < grid_.threads; i = end) {
    const std::string here = state(i);
    for (end = i + 1; end < grid_.threads && state(end) == here;) ++end;
    std::string& threads = threads_at[here];
    threads += (threads.empty() ? "" : ", ") + std::to_string(i) + (end - i > 1 ? "-" + std::to_string(end - 1) : "");
  }
  std::string report = "simt: diverged: in block " + std::to_string(context.block);
  const char* separator = ", threads ";
  for (const auto& [where, threads] : threads_at) {
    report += separator + threads + " " + where;
    separator = "; threads ";
  }
  return report;
}

void Executor::fail(const char* format, std::va_list arguments) {
  const int length =
      std::snprintf(report_, sizeof report_, "simt: block %d, thread %d: ", context.block, context.thread);
  std::vsnprintf(report_ + length, sizeof report_ - length, format, arguments);
  failed_ = true;
  Fiber::run(lane().fiber, launcher_);
  __builtin_unreachable();
}

}  // namespace

void launch(const Grid& grid, uint64_t seed, void (*kernel)(const void*), const void* argument) {
  static thread_local Executor executor;
  running = &executor;
  executor.launch(grid, seed, kernel, argument);
}

void fail(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  running->fail(format, arguments);
}

void fail_shared(const void* pointer, int64_t bytes, const char* what) {
  const int64_t offset = reinterpret_cast<intptr_t>(pointer) - reinterpret_cast<intptr_t>(context.shared);
  fail("%s of %lld bytes at offset %lld of shared memory, which has %lld: %s", what, static_cast<long long>(bytes),
       static_cast<long long>(offset), static_cast<long long>(context.shared_bytes),
       offset < 0 || offset + bytes > context.shared_bytes ? "out of bounds" : "not aligned");
}

void barrier(Where where) {
  running->lane().perform();
  running->barrier(where);
}

void warp_sync(Where where) {
  running->lane().perform();
  int nothing = 0;
  meet("warp_sync", nothing, [](int* const*) {}, where);
}

void meet(const char* name, void (*run)(void* const*), void* operand, Where where) {
  running->meet(name, run, operand, where);
}

void publish() { running->publish(); }

void check_arrival(int counter, int count) { running->check_arrival(counter, count); }

void issue_copy(void* shared, const void* global) {
  check_copy(shared, global);
  std::memset(shared, kNan, kCopyBytes);
  Lane& lane = running->lane();
  lane.copies.push_back({shared, global, lane.groups});
}

void commit_copies() { ++running->lane().groups; }

void wait_copies(int groups) {
  Lane& lane = running->lane();
  while (lane.landed < lane.copies.size() && lane.copies[lane.landed].group < lane.groups - groups) ++lane.landed;
}

}  // namespace fdpp::simt
