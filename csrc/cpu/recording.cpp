#include "cpu/recording.h"

#include <algorithm>
#include <thread>

#include "cpu/parallel.h"
#include "cpu/pause.h"

namespace fdpp::cpu {

namespace {

constexpr int64_t kPieceBytes = 128 << 10;  // the most that a thread takes at a time: others may wait for it
constexpr int64_t kAheadBytes = 128 << 10;  // that a thread fetches of the next weights: a share of its L2 cache
constexpr int64_t kLineBytes = 64;
// A piece takes some 20 us. Who waits longer waits for a thread that is not running.
constexpr auto kLate = std::chrono::microseconds(100), kStall = std::chrono::microseconds(400);
constexpr int kMostPauses = 32;  // the longest pause in first ones

// A counter that every replay finds at its start without being reset: beside its value stands the ticket of the replay
// that set it.
class alignas(64) Counter {
 public:
  uint64_t load(std::memory_order order) const { return word_.load(order); }
  bool exchange(uint64_t& seen, uint64_t ticket, int64_t value) {
    return word_.compare_exchange_weak(seen, ticket << kValueBits | static_cast<uint64_t>(value),
                                       std::memory_order_acq_rel, std::memory_order_relaxed);
  }
  static int64_t value(uint64_t word, uint64_t ticket, int64_t start) {
    const bool is_set = word >> kValueBits == (ticket & kTicketMask);
    return is_set ? static_cast<int64_t>(word & ((uint64_t{1} << kValueBits) - 1)) : start;
  }

 private:
  static constexpr int kValueBits = 40;
  static constexpr uint64_t kTicketMask = (uint64_t{1} << (64 - kValueBits)) - 1;
  std::atomic<uint64_t> word_{0};
};

thread_local Recording* current = nullptr;

}  // namespace

Recording* current_recording() { return current; }
void set_current_recording(Recording* recording) { current = recording; }

// Works that one thread does one after the other, or one work that threads share.
struct Recording::Phase {
  explicit Phase(int homes) : next(homes) {}

  int homes() const { return static_cast<int>(next.size()); }

  int64_t begin(int home) const { return home == homes() ? total : total * home / homes() / multiple * multiple; }

  // Takes a piece of a thread's range; false when nothing is left of it.
  bool take(int home, uint64_t ticket, int64_t& from, int64_t& to) {
    const int64_t end = begin(home + 1);
    uint64_t seen = next[home].load(std::memory_order_relaxed);
    do {
      from = Counter::value(seen, ticket, begin(home));
      if (from >= end) return false;
      const int64_t wanted = std::clamp((end - from) / 2, least, most);
      to = std::min(from + (wanted + multiple - 1) / multiple * multiple, end);
    } while (!next[home].exchange(seen, ticket, to));
    return true;
  }

  void run(int64_t from, int64_t to) const {
    if (homes() > 1) return works.front()->run(from, to);
    for (const Work* work : works) work->run(0, work->total);
  }

  void finish(int64_t count, uint64_t ticket) {
    uint64_t seen = done.load(std::memory_order_relaxed);
    while (!done.exchange(seen, ticket, Counter::value(seen, ticket, 0) + count)) {
    }
  }

  bool is_done(uint64_t ticket) const {
    return Counter::value(done.load(std::memory_order_acquire), ticket, 0) == total;
  }

  std::vector<const Work*> works;
  int64_t total = 1, multiple = 1, least = 1, most = 1;
  std::vector<Counter> next;  // by thread: where the rest of its range begins
  Counter done;               // how much of total
};

// The piece that a thread works on.
struct alignas(64) Recording::Hand {
  std::atomic<uint64_t> piece{0};  // another number for each piece; 0: none, or somebody else has done it
  std::atomic<size_t> phase{0};
  std::atomic<int64_t> from{0}, to{0};
  uint64_t pieces = 0;

  uint64_t hold(size_t in, int64_t begin, int64_t end) {
    phase.store(in, std::memory_order_relaxed);
    from.store(begin, std::memory_order_relaxed);
    to.store(end, std::memory_order_relaxed);
    piece.store(++pieces, std::memory_order_release);
    return pieces;
  }
  // Whether the caller is the first to have done that piece.
  bool let_go(uint64_t number) {
    return piece.compare_exchange_strong(number, 0, std::memory_order_acq_rel, std::memory_order_relaxed);
  }
};

// How much of the weights of a phase a thread has fetched ahead of time.
struct Recording::Ahead {
  size_t phase = 0;
  int64_t bytes = 0;
};

Recording::Recording(Clock::duration pause) : first_pause_(pause), pause_(pause) {}
Recording::~Recording() = default;

void Recording::divide(int threads) {
  homes_ = threads;
  phases_.clear();
  hands_.clear();
  for (int i = 0; i < threads; ++i) hands_.push_back(std::make_unique<Hand>());
  bool was_serial = false;
  for (const Work& work : works_) {
    const bool is_serial = work.is_serial || threads == 1;
    const bool joins = is_serial && was_serial && phases_.back()->works.back()->kind == work.kind;
    if (!joins) phases_.push_back(std::make_unique<Phase>(is_serial ? 1 : threads));
    was_serial = is_serial;
    Phase& phase = *phases_.back();
    phase.works.push_back(&work);
    if (is_serial) continue;
    phase.total = work.total;
    phase.multiple = work.multiple;
    phase.least = std::max(work.least, work.multiple);
    phase.most = work.record_bytes == 0 ? work.total : std::max(phase.least, kPieceBytes / work.record_bytes);
  }
}

void Recording::profile(const Threads& threads, WorkSeconds& seconds) {
  seconds_ = &seconds;
  replay(threads);
  seconds_ = nullptr;
}

void Recording::replay(const Threads& threads) {
  for (const Work& work : works_) {
    if (work.prepare) work.prepare(threads.count);
  }
  const int count = threads_to_use(threads.count);
  if (count != homes_) divide(count);
  ++ticket_;
  if (count == 1) return take_part(0);
  struct Team {
    Recording* recording;
    std::thread::id caller;
    std::atomic<int> members{0};
    Clock::time_point done;
  } team{this, std::this_thread::get_id(), 0, {}};
  const auto body = [](void* opaque) {
    Team& mine = *static_cast<Team*>(opaque);
    mine.recording->take_part(mine.members.fetch_add(1, std::memory_order_relaxed));
    if (std::this_thread::get_id() == mine.caller) mine.done = Clock::now();
  };
  threads.run(count, body, &team);
  // Whoever is missing at the end was taken away, too.
  if (Clock::now() - team.done > kStall) stalled_.store(true, std::memory_order_relaxed);
}

int Recording::threads_to_use(int threads) {
  if (stalled_.exchange(false, std::memory_order_relaxed)) {
    const auto now = Clock::now();
    pause_ = now < limited_until_ + pause_ ? std::min(2 * pause_, kMostPauses * first_pause_) : first_pause_;
    limited_until_ = now + pause_;
    limit_ = std::max(1, homes_ - 1);
  } else if (limit_ != 0 && Clock::now() > limited_until_) {
    limit_ = 0;
  }
  return limit_ == 0 ? threads : std::min(threads, limit_);
}

void Recording::take_part(int thread) {
  Ahead ahead;
  Clock::time_point since;
  WorkSeconds* const seconds = thread == 0 ? seconds_ : nullptr;
  if (seconds != nullptr) since = Clock::now();
  for (size_t i = 0; i < phases_.size(); ++i) {
    Phase& phase = *phases_[i];
    for (int step = 0; step < phase.homes(); ++step) {
      int64_t from = 0, to = 0;
      while (phase.take((thread + step) % phase.homes(), ticket_, from, to)) {
        const uint64_t piece = hands_[thread]->hold(i, from, to);
        phase.run(from, to);
        if (hands_[thread]->let_go(piece)) phase.finish(to - from, ticket_);
      }
    }
    wait_for(i, thread, ahead);
    if (seconds == nullptr) continue;
    const Clock::time_point now = Clock::now();
    (*seconds)[static_cast<size_t>(phase.works.front()->kind)] += std::chrono::duration<double>(now - since).count();
    since = now;
  }
}

void Recording::wait_for(size_t phase, int thread, Ahead& ahead) {
  constexpr int kPatience = 256;  // looks before the clock is asked
  Clock::time_point since;
  for (int looks = 1; !phases_[phase]->is_done(ticket_); ++looks) {
    fetch_ahead(phase, thread, ahead);
    pause_processor();
    if (looks % kPatience != 0) continue;
    if (looks == kPatience) since = Clock::now();
    const auto waited = Clock::now() - since;
    if (waited >= kLate) do_again(phase);
    if (waited < kStall) continue;
    stalled_.store(true, std::memory_order_relaxed);
    std::this_thread::yield();
  }
}

// Does the pieces of a phase that other threads hold.
void Recording::do_again(size_t phase) {
  Phase& mine = *phases_[phase];
  if (mine.homes() == 1 || !mine.works.front()->is_repeatable) return;
  for (const auto& hand : hands_) {
    const uint64_t piece = hand->piece.load(std::memory_order_acquire);
    const int64_t from = hand->from.load(std::memory_order_relaxed), to = hand->to.load(std::memory_order_relaxed);
    const bool is_here = hand->phase.load(std::memory_order_relaxed) == phase;
    std::atomic_thread_fence(std::memory_order_acquire);
    if (piece == 0 || !is_here || hand->piece.load(std::memory_order_relaxed) != piece) continue;
    mine.run(from, to);
    if (hand->let_go(piece)) mine.finish(to - from, ticket_);
  }
}

// A few lines of the next weights, where this thread will begin.
void Recording::fetch_ahead(size_t phase, int thread, Ahead& ahead) const {
  constexpr int64_t kBytes = 8 * kLineBytes;
  if (ahead.phase <= phase) {
    ahead = {phase + 1, 0};
    while (ahead.phase < phases_.size() && phases_[ahead.phase]->works.front()->weights == nullptr) ++ahead.phase;
  }
  if (ahead.phase == phases_.size() || ahead.bytes >= kAheadBytes) return;
  const Phase& next = *phases_[ahead.phase];
  const Work& work = *next.works.front();
  const int home = thread % next.homes();
  const int64_t begin = next.begin(home) * work.record_bytes + ahead.bytes;
  const int64_t end = std::min(next.begin(home + 1) * work.record_bytes, begin + kBytes);
  for (int64_t at = begin; at < end; at += kLineBytes) __builtin_prefetch(work.weights + at, 0, 2);
  ahead.bytes += kBytes;
}

}  // namespace fdpp::cpu
