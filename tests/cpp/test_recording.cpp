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
  Chain(int works, uint32_t seed, std::chrono::hours pause = {}, bool is_repeatable = false)
      : random(seed), order(kElements), recording(pause) {
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    values.assign(works + 1, std::vector<int64_t>(kElements, 0));
    for (int work = 0; work < works; ++work) {
      const auto below = [this](int64_t limit) { return static_cast<int64_t>(random()) % limit; };
      cpu::Work piece{kElements, 1 + below(5), below(64), !is_repeatable && random() % 3 == 0,
                      [this, work, is_repeatable](int64_t begin, int64_t end) {
                        if (hook) hook(work, begin);
                        for (int64_t i = begin; i < end; ++i) {
                          const int64_t value = values[work][order[i]] + 1;
                          values[work + 1][i] = is_repeatable ? value : values[work + 1][i] + value;
                        }
                      }};
      piece.is_repeatable = is_repeatable;
      if (random() % 2 == 0) piece.weights = text;
      piece.record_bytes = random() % 2 == 0 ? 4096 : 1;
      recording.add(piece);
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

// Replays once with three threads, of which one sleeps with a piece in its hands.
std::unique_ptr<Chain> stalled_chain(std::chrono::hours pause) {
  auto chain = std::make_unique<Chain>(10, 10, pause);
  std::atomic<bool> slept{false};
  chain->hook = [&](int, int64_t begin) {
    if (begin > 0 && !slept.exchange(true)) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  };
  chain->check_replays(1, observed(3));
  CHECK(slept && last_count == 3, "the hook ran");
  chain->hook = nullptr;
  return chain;
}

TEST(recording_does_without_a_thread_that_was_taken_away) {
  const auto chain = stalled_chain(std::chrono::hours(1));
  chain->check_replays(1, observed(3));
  CHECK(last_count < 3, "threads");
}

TEST(recording_tries_again_with_all_threads) {
  const auto chain = stalled_chain(std::chrono::hours(0));
  // Other processes can stall a replay, too.
  for (int tries = 0; tries == 0 || (last_count < 3 && tries < 1000); ++tries) chain->check_replays(1, observed(3));
  CHECK(last_count == 3, "threads");
}

TEST(recording_does_again_what_a_thread_sleeps_on) {
  const auto chain = std::make_unique<Chain>(10, 11, std::chrono::hours(0), true);
  std::atomic<int64_t> sleeps_on{0};
  std::atomic<bool> done_again{false};
  chain->hook = [&](int work, int64_t begin) {
    const int64_t piece = work * kElements + begin;
    int64_t nobody = 0;
    if (begin > 0 && sleeps_on.compare_exchange_strong(nobody, piece)) {
      const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
      while (!done_again && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    } else if (sleeps_on == piece) {
      done_again = true;
    }
  };
  chain->check_replays(1, threads(3));
  CHECK(done_again, "by a thread that waited");
  for (int replay = 0; replay < 200; ++replay) {
    sleeps_on = 0;
    done_again = false;
    chain->check_replays(1, threads(3));
  }
}

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
