// torch's thread pool, for the CPU backend, and the recording that takes its place.
#pragma once

#include <memory>
#include <utility>

#include <torch/csrc/stable/ops.h>

#include "cpu/parallel.h"
#include "cpu/recording.h"

namespace fdpp {

// Runs work now.
inline cpu::Threads torch_threads() {
  const auto run = [](int n, void (*body)(void*), void* context) {
    torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(context);
    });
  };
  return {static_cast<int>(torch::stable::get_num_threads()), run};
}

// Records it instead, where this thread does. A call that works on a copy of what it was given (`used` is not `given`)
// cannot be recorded, as nobody would make the copy again.
inline cpu::Threads recorded_or_torch_threads(std::initializer_list<std::pair<const void*, const void*>> used = {}) {
  cpu::Threads threads = torch_threads();
  threads.recording = cpu::current_recording();
  for (const auto& [pointer, given] : used) {
    if (pointer != given) threads.recording = nullptr;
  }
  return threads;
}

// Keeps an object as long as what was recorded with it.
template <typename T>
void keep(const cpu::Threads& threads, T&& object) {
  using Object = std::decay_t<T>;
  if (threads.recording != nullptr) threads.recording->keep(std::make_shared<Object>(std::forward<T>(object)));
}

}  // namespace fdpp
