#include "common/library.h"

#include <stdexcept>

#include "common/linear_choice.h"

namespace fdpp {

std::string Library::device_name(int device) const { return linear_device(device); }

int Library::flat_gemm_configs(int device, DType dtype, int format) const {
  return fdpp::flat_gemm_configs(device, dtype, format);
}

void Library::set_table(const std::string& device_name, const std::vector<DataflowTable::Row>& rows) const {
  set_linear_table(device_name, rows);
}

void Library::clear_tables() const { clear_linear_tables(); }

Choice Library::choice(int device, DType dtype, int64_t N, int64_t K, int64_t M, int format) const {
  return choose_linear(device, dtype, N, K, M, format);
}

void Library::force_packed_choice(const std::optional<Choice>& choice) const { fdpp::force_packed_choice(choice); }

void Library::set_batch_invariant(bool on) const { fdpp::set_batch_invariant(on); }

void Library::set_tokens_per_row(int64_t count) const { fdpp::set_tokens_per_row(count); }

std::string Library::architectures() const { return ""; }

Library::Features Library::cpu_features() const { throw std::invalid_argument("this library has no CPU kernels"); }

double Library::measure_read_bandwidth(int64_t, int) const {
  throw std::invalid_argument("this library has no CPU kernels");
}

std::unique_ptr<RecordedOperators> Library::record() const {
  throw std::invalid_argument("this library has no CPU kernels");
}

int64_t Library::packed_bytes(const std::string&, int64_t) const {
  throw std::invalid_argument("this library has no CPU kernels");
}

int64_t Library::pack_weight(const std::string&, const uint8_t* const*, int64_t, int64_t, uint8_t*) const {
  throw std::invalid_argument("this library has no CPU kernels");
}

void Library::set_seed(uint64_t) const { throw std::invalid_argument("this library simulates no GPU"); }

}  // namespace fdpp
