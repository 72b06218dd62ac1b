// The dataflow table in use, shared by linear's dispatch and the host module.
#pragma once

#include <memory>

#include "common/dataflow.h"

namespace fdpp {

void set_cpu_table(std::unique_ptr<const DataflowTable> table);
Choice choose_cpu(DType dtype, int64_t N, int64_t K, int64_t M);

}  // namespace fdpp
