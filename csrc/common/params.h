// What a launch needs to know: one struct per operator. Pointers carry their shape in a comment, strides are counted in
// elements, last dimensions are contiguous. The caller (csrc/torch) has checked every value.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/weight_format.h"

namespace fdpp {

// A cache tensor [blocks or B, page or S, Hkv, D].
struct CacheView {
  void* data;
  int64_t block_stride;  // between pages, or between sequences of a contiguous cache
  int64_t token_stride;
  int64_t head_stride;
};

// Where the slots of a sequence lie. Contiguous: one block per sequence, as long as the cache.
struct CacheLayout {
  const int32_t* block_table;  // [B, max_pages]; null: contiguous
  int64_t block_table_stride;
  int64_t page_size;  // slots in a block
  int64_t num_blocks;
};

// Floats in the scratch of one row of a split: o [D], l, r, padding, and the query in the form that dot products want.
constexpr int64_t attention_row_floats(int head_dim) { return 2 * int64_t{head_dim} + 32; }

struct AttentionParams {
  DType dtype;
  int batch, query_len, query_heads, kv_heads, head_dim;
  const void* q;  // [B, Sq, Hq, D]
  int64_t q_batch_stride, q_token_stride, q_head_stride;
  CacheView k, v;
  CacheLayout layout;
  const int32_t* cache_seqlens;  // [B]
  float softmax_scale;
  int64_t window;             // -1: no limit
  float softcap;              // 0: none
  const float* phi;           // [Hq] or null
  const float* alibi_slopes;  // [Hq] or null
  const float* sinks;         // [Hq] or null
  int num_splits;
  int tile;                    // GPU: attention_tiles.h; CPU: keys of a tile
  void* out;                   // [B, Sq, Hq, D], contiguous
  int64_t* rereference_count;  // [Hq] or null
  // CPU: [B, Hkv, splits, Hq / Hkv * Sq, attention_row_floats(D)], aligned to 64 bytes. GPU: attention_block.h.
  float* partial;
  int64_t capacity;   // slots per sequence
  int32_t* arrivals;  // GPU: attention_block.h
};

enum class Activation { identity, relu, silu, gelu, gelu_tanh };  // activation.h

constexpr int64_t kMaxFlatRows = 64;  // the largest M of the flat GEMM

struct LinearParams {
  DType dtype;
  int64_t M, N, K;
  const void* x;  // [M, K]
  int64_t x_stride;
  const void* weight;  // [N, K]
  int64_t weight_stride;
  const void* bias;  // [N] or null
  void* out;         // [M, out_columns()], contiguous, of out_dtype
  DType out_dtype;
  void* packed_x;  // CPU: scratch of packed_x_bytes()
  // What becomes of the product; the GPU kernels do it on the way (linear_epilogue.h), others as in EpilogueParams.
  bool gated;  // rows 2 i and 2 i + 1 of the weight are gate and up of column i: activation(gate) * up
  Activation activation;
  const void* residual;  // [M, out_columns()], of out_dtype, or null: is added
  int64_t residual_stride;
};

// A run of rows of one format of a packed weight, whose panels linear.weight points to (weight_format.h). N, bias and
// out are those of the run.
struct QuantizedParams {
  LinearParams linear;
  WeightFormat format;
  int64_t out_stride;  // between rows of the whole product
};

// Rows of a packed weight, unpacked.
struct DequantizeParams {
  DType dtype;
  int64_t K, count, total_rows;
  const uint8_t* weight;
  const int64_t* rows;  // [count]; null: row i is number i
  void* out;            // [count, K]; NaN for a row that the weight does not have
};

// The rows of those that are of one format, [first_row, first_row + count) of the weight, whose panels `rows.weight`
// points to; and what the format is made of (FormatInfo).
struct UnpackParams {
  DequantizeParams rows;
  int64_t first_row, count;
  int64_t panel_bytes, run_bytes;
  int header_bytes, group_bytes, bits, zero, groups, sub_scales;
  DType scale_dtype;
  bool has_min, has_zero, has_codebook;
  int8_t codebook[16];
};

struct GemvParams {
  LinearParams linear;
  int team_log2;  // of the number of warps that share the K of a row (gemv_kernel.h)
};

struct FlatGemmParams {
  LinearParams linear;
  int padded_m;       // what M is padded to: 8, 16, 32 or 64; more rows of x make more tiles
  int tile;           // of kFlatTiles
  int64_t blocks;     // flat_plan.h
  float* partial;     // [blocks, 2, tile]; null: no tile is shared between blocks
  int32_t* arrivals;  // [tiles], 0 before and after; null as above
};

// Rows of one format of a packed weight: flat.linear.weight points to their panels; its N, bias and out are those of
// the whole weight.
struct PackedGemmParams {
  FlatGemmParams flat;
  WeightFormat format;
  int64_t first_row, rows;
};

// What is left to do with the product of an implementation that knows neither gates nor residual.
struct EpilogueParams {
  LinearParams linear;
  const void* product;  // [M, N], contiguous, bias included
};

FDPP_INLINE int64_t out_columns(const LinearParams& p) { return p.gated ? p.N / 2 : p.N; }

struct NormParams {
  DType dtype;
  int64_t rows, inner, width;  // row i of x lies at (i / inner) * outer_stride + (i % inner) * inner_stride
  const void* x;
  int64_t outer_stride, inner_stride;
  void* residual;  // [rows, width], contiguous, of residual_dtype (dtype or f32), or null
  DType residual_dtype;
  bool centered;       // whether the mean is subtracted: layer norm; otherwise RMS norm
  const void* weight;  // [width]
  const void* bias;    // [width] or null
  float eps;
  void* out;  // [rows, width]
};

// The largest element of each row and where it comes first; NaN counts as the largest.
struct ArgmaxParams {
  DType dtype;
  int64_t rows, columns, row_stride;
  const void* x;
  void* values;      // [rows]
  int64_t* indices;  // [rows]
};

struct SiluMulParams {
  DType dtype;
  int64_t rows, inner, width;  // rows of gate_up as in NormParams; width = F
  const void* gate_up;
  int64_t outer_stride, inner_stride;
  void* out;  // [rows, F]
};

struct RopeParams {
  DType dtype;
  int batch, query_len, query_heads, kv_heads, head_dim, rotated_dim;
  const void *q, *k, *v;                             // [B, Sq, H, D]
  int64_t q_strides[3], k_strides[3], v_strides[3];  // batch, token, head
  const float *cos, *sin;                            // [max_position, rotated_dim / 2]
  const int32_t* positions;                          // [B, Sq]
  int64_t positions_stride;
  int64_t position_limit;  // of cos, sin and the cache
  CacheView k_cache, v_cache;
  CacheLayout layout;
  bool interleaved;
  void* out;  // [B, Sq, Hq, D]
};

}  // namespace fdpp
