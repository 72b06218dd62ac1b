// Runs csrc/gpu/norm_kernel.h, silu_mul_kernel.h and rope_kernel.h.
#include "simt/run_kernel.h"

namespace fdpp::simt {

template void run(Machine, const NormParams&, uint64_t);
template void run(Machine, const SiluMulParams&, uint64_t);
template void run(Machine, const RopeParams&, uint64_t);

}  // namespace fdpp::simt
