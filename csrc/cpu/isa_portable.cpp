// The kernels for any processor: the baseline of the compiler.
#include "cpu/isa_table.h"
#include "cpu/vec_portable.h"

namespace fdpp::cpu {

const Kernels kPortableKernels = IsaTable<Portable>::kernels("portable");

}  // namespace fdpp::cpu
