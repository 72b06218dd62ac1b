// Runs csrc/gpu/packed_gemm_kernel.h and dequantize_kernel.h.
#include "simt/run_kernel.h"

namespace fdpp::simt {

template void run(Machine, const PackedGemmParams&, uint64_t);
template void run(Machine, const UnpackParams&, uint64_t);

}  // namespace fdpp::simt
