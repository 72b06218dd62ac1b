#include "torch/shared/gpu_operators.h"

#include <limits>

namespace fdpp {

void check_matrix_dtype(const char* op, const char* name, const Tensor& tensor) {
  const Argument argument(op, name, tensor);
  if (argument.floating() == DType::f32) argument.fail("be float16 or bfloat16 for the kernels of a GPU");
}

void check_gpu_attention(const AttentionArguments& arguments) {
  check_matrix_dtype(kDecodeAttention, "q", arguments.q);
  Argument(kDecodeAttention, "q", arguments.q).aligned();
  Argument(kDecodeAttention, "k_cache", arguments.k_cache).aligned();
  Argument(kDecodeAttention, "v_cache", arguments.v_cache).aligned();
}

// A grid has one dimension of 31 bits.
void check_blocks(const char* op, int64_t blocks) {
  if (blocks > std::numeric_limits<int>::max()) {
    fail(op, "the work must make fewer than 2^31 blocks; got " + std::to_string(blocks));
  }
}

}  // namespace fdpp
