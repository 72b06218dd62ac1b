#include "common/linear_choice.h"

#include <atomic>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <vector>

#include "common/params.h"

#define FDPP_API extern "C" __attribute__((visibility("default")))

namespace fdpp {

namespace {

constexpr int kMaxDevices = 64;

std::atomic<bool> batch_invariant{false};

// The tables in force. A look-up reads one pointer, so tables that were replaced stay alive (they are few and small).
// The name of a device is asked for at its first look-up: asking may start a GPU's driver.
class Tables {
 public:
  const DataflowTable* of(int device) {
    if (device < 0 || device >= kMaxDevices) return &empty_;
    const DataflowTable* table = in_force_[device].load(std::memory_order_acquire);
    return table != nullptr ? table : make(device);
  }

  void set(const std::string& name, const std::vector<DataflowTable::Row>& rows) {
    const std::lock_guard lock(mutex_);
    rows_[name] = rows;
    forget();
  }

  void clear() {
    const std::lock_guard lock(mutex_);
    rows_.clear();
    forget();
  }

 private:
  void forget() {
    for (auto& table : in_force_) table.store(nullptr, std::memory_order_release);
  }

  const DataflowTable* make(int device) {
    const std::string name = linear_device(device);
    const std::lock_guard lock(mutex_);
    std::vector<DataflowTable::Row> rows = rows_[name];
    const auto left_out = std::erase_if(rows, [&](const DataflowTable::Row& row) {
      return row.impl == Impl::flat_gemm && row.config >= flat_gemm_configs(device, row.dtype);
    });
    if (left_out > 0) {
      std::fprintf(
          stderr, "fdpp: %s has no such configuration of flat_gemm as %lld rows of its dataflow table name: left out\n",
          name.c_str(), static_cast<long long>(left_out));
    }
    all_.push_back(std::make_unique<const DataflowTable>(rows));
    in_force_[device].store(all_.back().get(), std::memory_order_release);
    return all_.back().get();
  }

  std::mutex mutex_;
  const DataflowTable empty_{{}};
  std::vector<std::unique_ptr<const DataflowTable>> all_;
  std::map<std::string, std::vector<DataflowTable::Row>> rows_;  // by the names of devices
  std::atomic<const DataflowTable*> in_force_[kMaxDevices] = {};
};

Tables& tables() {
  static Tables tables;
  return tables;
}

thread_local std::string text;

const char* keep(std::string value) {
  text = std::move(value);
  return text.c_str();
}

bool known(int64_t dtype) { return dtype >= 0 && dtype <= static_cast<int64_t>(DType::f16); }

// What is wrong with a row of a table; empty: nothing.
std::string problem_of(const DataflowTable::Row& row) {
  const int configs = row.impl == Impl::flat_gemm ? flat_gemm_configs(kAnyDevice, row.dtype) : 0;
  if (row.config != -1 && (row.config < 0 || row.config >= configs)) {
    return std::string("config of ") + name_of(row.impl) + " must be -1 or below " + std::to_string(configs) +
           "; got " + std::to_string(row.config);
  }
  if (row.impl == Impl::flat_gemm && row.M > kMaxFlatRows) {
    return "flat_gemm serves M up to " + std::to_string(kMaxFlatRows) + "; got " + std::to_string(row.M);
  }
  return "";
}

}  // namespace

bool is_batch_invariant() { return batch_invariant.load(std::memory_order_relaxed); }

Choice choose_linear(int device, DType dtype, int64_t N, int64_t K, int64_t M) {
  if (is_batch_invariant()) return batch_invariant_choice(device, dtype, N, K);
  const std::optional<Choice> measured = tables().of(device)->find(dtype, N, K, M);
  return measured ? *measured : linear_rule(device, dtype, N, K, M);
}

// What follows throws nothing; texts live until the thread's next call.

// "ok;<name>" of a device as tables know it, or "error;<why>".
FDPP_API const char* fdpp_linear_device(int device) {
  try {
    return keep("ok;" + linear_device(device));
  } catch (const std::exception& error) {
    return keep(std::string("error;") + error.what());
  }
}

// Number of configurations of flat_gemm for a dtype (numbered as in common/dtype.h) on a device, the most of any for
// kAnyDevice; -1 for what is unknown.
FDPP_API int fdpp_flat_gemm_configs(int device, int64_t dtype) {
  try {
    return known(dtype) ? flat_gemm_configs(device, static_cast<DType>(dtype)) : -1;
  } catch (const std::exception&) {
    return -1;
  }
}

FDPP_API void fdpp_clear_linear_tables() { tables().clear(); }

// Replaces the dataflow table of the devices of a name. `rows` [count][6]: dtype, N, K, M, implementation, config,
// numbered as in common/. Returns what is wrong with it, null when nothing is.
FDPP_API const char* fdpp_set_linear_table(const char* device, const int64_t* rows, int64_t count) {
  try {
    std::vector<DataflowTable::Row> parsed;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t* cell = rows + 6 * i;
      if (!known(cell[0]) || cell[4] < 0 || cell[4] > static_cast<int64_t>(Impl::aten)) {
        return keep("unknown dtype or implementation");
      }
      parsed.push_back({static_cast<DType>(cell[0]), cell[1], cell[2], cell[3], static_cast<Impl>(cell[4]),
                        static_cast<int>(cell[5])});
      const std::string problem = problem_of(parsed.back());
      if (!problem.empty()) return keep(problem);
    }
    tables().set(device, parsed);
    return nullptr;
  } catch (const std::exception& error) {
    return keep(error.what());
  }
}

// What linear does for a shape: implementation, config, and where from (numbered as Source). Returns what is wrong, or
// null.
FDPP_API const char* fdpp_linear_choice(int device, int64_t dtype, int64_t N, int64_t K, int64_t M, int64_t* choice) {
  try {
    if (!known(dtype)) return keep("unknown dtype");
    const Choice found = choose_linear(device, static_cast<DType>(dtype), N, K, M);
    choice[0] = static_cast<int64_t>(found.impl);
    choice[1] = found.config;
    choice[2] = static_cast<int64_t>(found.source);
    return nullptr;
  } catch (const std::exception& error) {
    return keep(error.what());
  }
}

FDPP_API void fdpp_set_batch_invariant(int on) { batch_invariant.store(on != 0, std::memory_order_relaxed); }

}  // namespace fdpp
