// Recorded work, replayed by threads that come late, not at all, or are taken away.
#include "cpu/recording.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <numeric>
#include <random>
#include <thread>

#include "check.h"
#include "cpu/parallel.h"

using namespace fdpp;
using namespace fdpp::test;

namespace {

constexpr int64_t kElements = 700;

// Each work sets every element to one more than another element of the work before: wrong where a work begins before
// all pieces of the one before are done, or where a piece runs twice or never.
struct Chain {
  Chain(int works, uint32_t seed, std::chrono::hours pause = {}) : random(seed), order(kElements), recording(pause) {
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    values.assign(works + 1, std::vector<int64_t>(kElements, 0));
    for (int work = 0; work < works; ++work) {
      const bool is_serial = random() % 3 == 0;
      const int64_t multiple = 1 + random() % 5;
      recording.add({kElements, multiple, static_cast<int64_t>(random() % 64), is_serial,
                     [this, work](int64_t begin, int64_t end) {
                       if (hook) hook(work, begin);
                       for (int64_t i = begin; i < end; ++i) values[work + 1][i] += values[work][order[i]] + 1;
                     },
                     nullptr, random() % 2 == 0 ? text : nullptr, random() % 2 == 0 ? 4096 : 1});
    }
  }

  void check_replays(int replays, const cpu::Threads& threads) {
    for (int replay = 0; replay < replays; ++replay) {
      for (auto& row : values) std::fill(row.begin(), row.end(), 0);
      recording.replay(threads);
      for (size_t work = 0; work < values.size(); ++work) {
        const auto expected = static_cast<int64_t>(work);
        CHECK(std::ranges::all_of(values[work], [&](int64_t value) { return value == expected; }), "in order");
      }
    }
  }

  const char text[kElements * 4096 + 64] = {};
  std::mt19937 random;
  std::vector<int64_t> order;
  std::vector<std::vector<int64_t>> values;
  std::function<void(int work, int64_t begin)> hook;
  cpu::Recording recording;
};

}  // namespace

TEST(recording_replays_in_order) {
  for (int count = 1; count <= 4; ++count) {
    const auto chain = std::make_unique<Chain>(40, count);
    chain->check_replays(50, threads(count));
  }
}

TEST(recording_with_another_number_of_threads) {
  const auto chain = std::make_unique<Chain>(30, 7);
  for (const int count : {3, 1, 4, 2}) chain->check_replays(5, threads(count));
}

TEST(recording_with_threads_that_do_not_come) {
  const cpu::Threads alone{4, [](int, void (*body)(void*), void* context) { body(context); }};
  const auto chain = std::make_unique<Chain>(30, 8);
  chain->check_replays(5, alone);
}

TEST(recording_one_after_the_other) {  // as in a parallel region inside another one
  const cpu::Threads in_turn{3, [](int n, void (*body)(void*), void* context) {
                               for (int i = 0; i < n; ++i) body(context);
                             }};
  const auto chain = std::make_unique<Chain>(30, 9);
  chain->check_replays(5, in_turn);
}

namespace {

std::atomic<int> last_count{0};

cpu::Threads observed(int count) {
  return {count, [](int n, void (*body)(void*), void* context) {
            last_count = n;
            threads(n).run(n, body, context);
          }};
}

}  // namespace

// Replays after one in which a thread slept with a piece in its hands have that many threads.
void check_after_stall(std::chrono::hours pause, int expected) {
  const auto chain = std::make_unique<Chain>(10, 10, pause);
  chain->check_replays(1, observed(3));
  CHECK(last_count == 3, "threads");
  std::atomic<bool> slept{false};
  chain->hook = [&](int, int64_t begin) {
    if (begin > 0 && !slept.exchange(true)) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  };
  chain->check_replays(1, observed(3));
  CHECK(slept, "the hook ran");
  chain->hook = nullptr;
  chain->check_replays(2, observed(3));
  CHECK(last_count == expected, "threads");
}

TEST(recording_does_without_a_thread_that_was_taken_away) { check_after_stall(std::chrono::hours(1), 2); }

TEST(recording_tries_again_with_all_threads) { check_after_stall(std::chrono::hours(0), 3); }

TEST(recording_of_nothing) {
  cpu::Recording recording;
  recording.replay(threads(2));
  CHECK(recording.size() == 0, "size");
}

TEST(recorded_pieces_prepare) {
  cpu::Recording recording;
  int prepared = 0, ran = 0;
  recording.add({1, 1, 1, true, [&](int64_t, int64_t) { ran += prepared; }, [&](int count) { prepared = count; }});
  recording.replay(threads(3));
  CHECK(prepared == 3 && ran == 3, "prepare comes first");
}
