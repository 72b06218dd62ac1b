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

namespace fdpp {

namespace {

constexpr int kMaxDevices = 64;

std::atomic<bool> batch_invariant{false};
thread_local int64_t tokens_per_row = 1;
thread_local std::optional<Choice> forced;

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
      return row.impl == Impl::flat_gemm && row.config >= flat_gemm_configs(device, row.dtype, row.format);
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

void check(const DataflowTable::Row& row) {
  if (row.impl == Impl::gemv && !has_gemv(row.format)) {
    throw std::invalid_argument("there is no gemv of packed weights on this device");
  }
  const int configs = row.impl == Impl::flat_gemm ? flat_gemm_configs(kAnyDevice, row.dtype, row.format) : 0;
  if (row.config != -1 && (row.config < 0 || row.config >= configs)) {
    throw std::invalid_argument(std::string("config of ") + name_of(row.impl) + " must be -1 or below " +
                                std::to_string(configs) + "; got " + std::to_string(row.config));
  }
  if (row.impl == Impl::flat_gemm && row.format == kPlain && row.M > kMaxFlatRows) {
    throw std::invalid_argument("flat_gemm serves M up to " + std::to_string(kMaxFlatRows) + "; got " +
                                std::to_string(row.M));
  }
}

}  // namespace

bool is_batch_invariant() { return batch_invariant.load(std::memory_order_relaxed); }

Choice choose_linear(int device, DType dtype, int64_t N, int64_t K, int64_t M, int format) {
  if (forced.has_value() && format != kPlain) return *forced;
  if (is_batch_invariant()) return batch_invariant_choice(device, dtype, N, K, format);
  const int64_t rows = (M + tokens_per_row - 1) / tokens_per_row;
  const std::optional<Choice> measured = tables().of(device)->find(dtype, N, K, rows, format);
  return measured ? *measured : linear_rule(device, dtype, N, K, rows, format);
}

void set_linear_table(const std::string& device_name, const std::vector<DataflowTable::Row>& rows) {
  for (const DataflowTable::Row& row : rows) check(row);
  tables().set(device_name, rows);
}

void clear_linear_tables() { tables().clear(); }

void set_batch_invariant(bool on) { batch_invariant.store(on, std::memory_order_relaxed); }

void set_tokens_per_row(int64_t count) {
  if (count < 1) throw std::invalid_argument("tokens per row must be at least 1; got " + std::to_string(count));
  tokens_per_row = count;
}

void force_packed_choice(const std::optional<Choice>& choice) { forced = choice; }

}  // namespace fdpp
