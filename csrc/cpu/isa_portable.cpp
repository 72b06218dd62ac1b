// The kernels for any processor: the baseline of the compiler.
// What has no instructions takes the compiler minutes to unroll.
#define FDPP_UNROLL_GROUP
#include "cpu/isa_table.h"
#include "cpu/vec_portable.h"

namespace fdpp::cpu {

const Kernels kPortableKernels = IsaTable<Portable>::kernels("portable");

}  // namespace fdpp::cpu
