// The operators of a step in order, recorded once and replayed by one team of threads.
//
// A replay has one phase after the other. In a phase each thread has a range of its own, of which it takes a piece at a
// time; who has finished takes pieces of others. The next phase begins when all pieces are done: no thread waits for
// one that holds no piece, and a piece whose thread the system has taken away is done again by who waits for it, where
// that gives the same. Meanwhile a thread that finds no piece fetches the weights that it will want next: the double
// buffer of the paper, across operators.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace fdpp::cpu {

struct Threads;

enum class WorkKind { weights, attention, others };
using WorkSeconds = std::array<double, 3>;  // by kind

// Work of an operator that threads can share: run(begin, end) for disjoint ranges that make up [0, total), in any
// order. The pieces are multiples of `multiple`, and not below `least` but at the end.
struct Work {
  int64_t total, multiple, least;
  bool is_serial;  // too little to be shared
  std::function<void(int64_t begin, int64_t end)> run;
  std::function<void(int threads)> prepare = nullptr;  // called before each replay
  WorkKind kind = WorkKind::others;
  bool is_repeatable = false;  // run() may be called twice for a range, also at the same time, until the replay ends
  // The weights that run() reads, from first to last: [total] records of that many bytes.
  const char* weights = nullptr;
  int64_t record_bytes = 0;
};

class Recording {
 public:
  using Clock = std::chrono::steady_clock;

  // After a thread was taken away with work in its hands, replays do with one thread fewer for that long; at each
  // further time soon after, for twice as long.
  explicit Recording(Clock::duration pause = std::chrono::milliseconds(20));
  ~Recording();

  // Adds work. What it points into must live as long as this object; keep() sees to that.
  void add(Work work) { works_.push_back(std::move(work)); }
  void keep(std::shared_ptr<const void> object) { kept_.push_back(std::move(object)); }
  int64_t size() const { return static_cast<int64_t>(works_.size()); }

  // Does all work, in order, on threads of the caller's. Nothing can be added any more. One call at a time.
  void replay(const Threads& threads);
  // Does it once more and adds what each kind took, as one of the threads saw it.
  void profile(const Threads& threads, WorkSeconds& seconds);

 private:
  struct Phase;
  struct Ahead;
  struct Hand;

  void divide(int threads);
  int threads_to_use(int threads);
  void take_part(int thread);
  void wait_for(size_t phase, int thread, Ahead& ahead);
  void do_again(size_t phase);
  void fetch_ahead(size_t phase, int thread, Ahead& ahead) const;

  std::vector<Work> works_;
  std::vector<std::shared_ptr<const void>> kept_;
  std::vector<std::unique_ptr<Phase>> phases_;
  std::vector<std::unique_ptr<Hand>> hands_;  // of the threads
  int homes_ = 0;                             // threads that the phases are divided among
  uint64_t ticket_ = 0;                       // of this replay

  WorkSeconds* seconds_ = nullptr;
  std::atomic<bool> stalled_{false};
  int limit_ = 0;  // of threads; 0: none
  Clock::time_point limited_until_;
  const Clock::duration first_pause_;
  Clock::duration pause_;
};

// Where operators that this thread calls are recorded instead of run; null: they run.
Recording* current_recording();
void set_current_recording(Recording* recording);

}  // namespace fdpp::cpu
