// linear's choice of an implementation, in every library that has linear layers: the tables in force, per device, and
// the rule for what they do not know. Python reaches it through common/library.h.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/dataflow.h"

namespace fdpp {

// What a library provides. Devices have a number, 0 for the CPU, and the name that tables know them by; of one that is
// not there, std::invalid_argument tells.
std::string linear_device(int device);
constexpr int kAnyDevice = -1;
int flat_gemm_configs(int device, DType dtype, int format = kPlain);  // of any device: the most that one has
bool has_gemv(int format);
// For shapes without a row.
Choice linear_rule(int device, DType dtype, int64_t N, int64_t K, int64_t M, int format);
// The one for all M, where results must not depend on the rows around a row.
Choice batch_invariant_choice(int device, DType dtype, int64_t N, int64_t K, int format);

Choice choose_linear(int device, DType dtype, int64_t N, int64_t K, int64_t M, int format = kPlain);
// Replaces the table of the devices of a name. std::invalid_argument for a row that makes no sense: the table in force
// stays.
void set_linear_table(const std::string& device_name, const std::vector<DataflowTable::Row>& rows);
void clear_linear_tables();

bool is_batch_invariant();
void set_batch_invariant(bool on);

// Until the next call, products of this thread choose as those of M / count rows do: a step that appends `count` tokens
// to each sequence has the bits of steps of one token where an implementation sums a row alike for every M.
void set_tokens_per_row(int64_t count);

// Until the next call, products of this thread with packed weights take this choice: for those who measure.
void force_packed_choice(const std::optional<Choice>& choice);

}  // namespace fdpp
