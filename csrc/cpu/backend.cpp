#include "cpu/backend.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>

#include "common/split_plan.h"

namespace fdpp::cpu {

namespace {

constexpr int64_t kSerialBytes = 16 << 10;  // less than this takes a thread less time than waking another
constexpr int64_t kPieceBytes = 16 << 10;   // the least that a thread takes at a time
constexpr int64_t kColumnMultiple = 48;     // of every tile width: 16 of GEMV and AMX, 2 and 3 of the flat GEMM
constexpr int kMinSplitKeys = kAttentionTile;

Threads threads_for(int64_t bytes, const Threads& threads) {
  return {bytes < kSerialBytes ? 1 : threads.count, threads.run};
}

template <typename Fn>
void for_each_columns(const LinearParams& p, const Threads& threads, Fn fn) {
  if (p.M == 0 || p.N == 0) return;
  const int64_t row_bytes = std::max<int64_t>(1, p.K * size_of(p.dtype));
  for_each_piece(threads_for(p.N * row_bytes, threads), p.N, kColumnMultiple, kPieceBytes / row_bytes, fn);
}

// Rows of an element-wise kernel.
template <typename Fn>
void for_each_rows(const Threads& threads, int64_t rows, int64_t row_bytes, Fn fn) {
  const int64_t least = kPieceBytes / std::max<int64_t>(1, row_bytes);
  for_each_piece(threads_for(rows * row_bytes, threads), rows, 1, least, fn);
}

}  // namespace

int plan_attention_splits(const AttentionParams& p, int64_t max_keys, const Threads& threads) {
  return plan_splits(int64_t{p.batch} * p.kv_heads, max_keys, threads.count, kMinSplitKeys);
}

void decode_attention(const Kernels& kernels, const AttentionParams& p, const Threads& threads) {
  const int64_t units = int64_t{p.batch} * p.kv_heads;
  int64_t keys = 0;
  for (int b = 0; b < p.batch; ++b) keys += p.cache_seqlens[b];
  const int64_t bytes = keys * p.kv_heads * p.head_dim * 2 * size_of(p.dtype);
  const auto splits_left = std::make_unique<std::atomic<int>[]>(units);
  for (int64_t unit = 0; unit < units; ++unit) splits_left[unit].store(p.num_splits, std::memory_order_relaxed);
  for_each_item(threads_for(bytes, threads), units * p.num_splits, [&](int64_t item) {
    const int64_t unit = item / p.num_splits;
    const int b = static_cast<int>(unit / p.kv_heads), h = static_cast<int>(unit % p.kv_heads);
    kernels.attention_split(p, b, h, static_cast<int>(item % p.num_splits));
    // The last split to finish merges them all, in the order of the splits: one pass, deterministic.
    if (splits_left[unit].fetch_sub(1, std::memory_order_acq_rel) == 1) kernels.attention_merge(p, b, h);
  });
}

void gemv(const Kernels& kernels, const LinearParams& p, const Threads& threads) {
  kernels.pack_x(p, kGemv);
  for_each_columns(p, threads, [&](int64_t begin, int64_t end) { kernels.gemv(p, begin, end); });
}

int default_flat_gemm_config(const Kernels& kernels, const LinearParams& p) {
  const int configs = kernels.flat_gemm_configs(p.dtype);
  // The last configuration is AMX, where the CPU has it.
  return configs > kNumFlatGemmConfigs ? configs - 1 : 1;
}

void flat_gemm(const Kernels& kernels, const LinearParams& p, int config, const Threads& threads) {
  kernels.pack_x(p, config);
  for_each_columns(p, threads, [&](int64_t begin, int64_t end) { kernels.flat_gemm(p, config, begin, end); });
}

void linear_epilogue(const Kernels& kernels, const EpilogueParams& p, const Threads& threads) {
  const int64_t row_bytes = p.linear.N * size_of(p.linear.dtype);
  for_each_rows(threads, p.linear.M, row_bytes,
                [&](int64_t begin, int64_t end) { kernels.linear_epilogue(p, begin, end); });
}

void norm(const Kernels& kernels, const NormParams& p, const Threads& threads) {
  const int64_t row_bytes = p.width * size_of(p.dtype);
  for_each_rows(threads, p.rows, row_bytes, [&](int64_t begin, int64_t end) { kernels.norm(p, begin, end); });
}

void silu_mul(const Kernels& kernels, const SiluMulParams& p, const Threads& threads) {
  const int64_t row_bytes = p.width * 2 * size_of(p.dtype);
  for_each_rows(threads, p.rows, row_bytes, [&](int64_t begin, int64_t end) { kernels.silu_mul(p, begin, end); });
}

void rope_append(const Kernels& kernels, const RopeParams& p, const Threads& threads) {
  const int64_t tokens = int64_t{p.batch} * p.query_len;
  const int64_t token_bytes = int64_t{p.query_heads + 2 * p.kv_heads} * p.head_dim * size_of(p.dtype);
  for_each_rows(threads, tokens, token_bytes, [&](int64_t begin, int64_t end) { kernels.rope_append(p, begin, end); });
}

double measure_read_bandwidth(const Kernels& kernels, int64_t bytes, int repeats, const Threads& threads) {
  constexpr int64_t kPiece = 1 << 20;
  const int64_t pieces = std::max<int64_t>(1, bytes / kPiece);
  const auto buffer = std::make_unique<char[]>(pieces * kPiece);  // zeroed, so every page is backed
  std::atomic<uint64_t> sink{0};
  double best = 0.0;
  for (int repeat = 0; repeat <= repeats; ++repeat) {  // the first pass warms up
    const auto start = std::chrono::steady_clock::now();
    for_each_item(threads, pieces, [&](int64_t i) {
      sink.fetch_add(kernels.read_all(buffer.get() + i * kPiece, kPiece), std::memory_order_relaxed);
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (repeat > 0) best = std::max(best, static_cast<double>(pieces * kPiece) / seconds.count());
  }
  return best;
}

}  // namespace fdpp::cpu
