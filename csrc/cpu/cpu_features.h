// Which kernels this processor can run, and which it runs.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace fdpp::cpu {

// Kernel tables that this processor can execute, best first; the last is the portable one.
std::vector<const Kernels*> available_kernels();

// The table in use: the best one, or the one that FDPP_CPU_ISA names. Throws std::invalid_argument for a name that is
// unknown or that this processor cannot execute.
const Kernels& kernels();

// "<vendor>-<family>-<model>-<isa>", the device column of dataflow tables.
std::string device_name();

}  // namespace fdpp::cpu
