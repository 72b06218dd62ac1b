// The CPU's library: the schemas of torch.ops.fdpp.*, which every backend implements, and what it offers beside them.
#include "common/library.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "cpu/backend.h"
#include "cpu/cpu_features.h"
#include "cpu/recording.h"
#include "torch/arguments/schemas.h"
#include "torch/cpu/cpu_threads.h"

namespace fdpp {

namespace {

STABLE_TORCH_LIBRARY(fdpp, m) { schemas::define(m); }

bool is_finite_at(DType dtype, const void* values, int64_t i) {
  switch (dtype) {
    case DType::f32: return std::isfinite(static_cast<const float*>(values)[i]);
    case DType::bf16: return std::isfinite(to_float(static_cast<const bf16*>(values)[i]));
    case DType::f16: return std::isfinite(to_float(static_cast<const f16*>(values)[i]));
  }
  return false;
}

class CpuRecording final : public RecordedOperators {
 public:
  ~CpuRecording() override { end(); }

  void begin() override { cpu::set_current_recording(&recording_); }
  void end() override {
    if (cpu::current_recording() == &recording_) cpu::set_current_recording(nullptr);
  }
  int64_t size() const override { return recording_.size(); }
  void copy(void* to, const void* from, int64_t bytes) override {
    once([=] { std::memcpy(to, from, bytes); });
  }
  void zero(void* to, int64_t bytes) override {
    once([=] { std::memset(to, 0, bytes); });
  }
  void add(int32_t* to, const int32_t* from, int64_t count) override {
    once([=] {
      for (int64_t i = 0; i < count; ++i) to[i] += from[i];
    });
  }
  void clamp_min(int64_t* to, const int64_t* from, int64_t least, int64_t count) override {
    once([=] {
      for (int64_t i = 0; i < count; ++i) to[i] = std::max(from[i], least);
    });
  }
  void gather_rows(void* to, const void* table, const int64_t* rows, int64_t count, int64_t row_bytes) override {
    once([=] {
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(static_cast<char*>(to) + i * row_bytes, static_cast<const char*>(table) + rows[i] * row_bytes,
                    row_bytes);
      }
    });
  }
  void argmax(const ArgmaxParams& params) override { cpu::argmax(cpu::kernels(), params, threads()); }
  void is_finite(bool* to, DType dtype, const void* from, int64_t count) override {
    once([=] {
      for (int64_t i = 0; i < count; ++i) to[i] = is_finite_at(dtype, from, i);
    });
  }
  void where(int64_t* to, const bool* condition, const int64_t* from, int64_t other, int64_t count) override {
    once([=] {
      for (int64_t i = 0; i < count; ++i) to[i] = condition[i] ? from[i] : other;
    });
  }

  void replay() override { recording_.replay(torch_threads()); }
  cpu::WorkSeconds profile() override {
    cpu::WorkSeconds seconds{};
    recording_.profile(torch_threads(), seconds);
    return seconds;
  }

 private:
  cpu::Threads threads() {
    cpu::Threads threads = torch_threads();
    threads.recording = &recording_;
    return threads;
  }
  template <typename Fn>
  void once(Fn fn) {
    cpu::once(threads(), fn);
  }

  cpu::Recording recording_;
};

class CpuLibrary final : public Library {
 public:
  Features cpu_features() const override {
    Features found{cpu::kernels().name, {}, cpu::device_name()};
    for (const cpu::Kernels* table : cpu::available_kernels()) found.available.push_back(table->name);
    return found;
  }

  double measure_read_bandwidth(int64_t bytes, int repeats) const override {
    return cpu::measure_read_bandwidth(cpu::kernels(), bytes, repeats, torch_threads());
  }

  int64_t packed_bytes(const std::string& layout, int64_t K) const override {
    int64_t bytes = 0;
    for (const Segment& segment : segments_of(layout, K)) bytes += segment.bytes(K);
    return bytes;
  }

  int64_t pack_weight(const std::string& format, const uint8_t* const* rows, int64_t count, int64_t K,
                      uint8_t* to) const override {
    const Segment segment = segments_of(format + ":" + std::to_string(count), K).front();
    std::atomic<int64_t> damaged{0};
    cpu::for_each_item(torch_threads(), segment.panels(), [&](int64_t panel) {
      const uint8_t* of_panel[kPanelRows] = {};
      for (int i = 0; i < kPanelRows && panel * kPanelRows + i < count; ++i) of_panel[i] = rows[panel * kPanelRows + i];
      damaged += pack_panel(segment.format, of_panel, K, to + panel * info_of(segment.format).panel_bytes(K));
    });
    return damaged;
  }

  std::unique_ptr<RecordedOperators> record() const override { return std::make_unique<CpuRecording>(); }
};

const CpuLibrary library{};

}  // namespace

}  // namespace fdpp

FDPP_EXPORT_LIBRARY(fdpp::library)
