#include "cpu/backend.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>

#include "common/split_plan.h"

namespace fdpp::cpu {

namespace {

constexpr int64_t kColumnMultiple = 48;  // of every tile width: 16 of GEMV and AMX, 2 and 3 of the flat GEMM
constexpr int kMinSplitKeys = kAttentionTile;
constexpr int64_t kTileBytes = 256 << 10;  // of keys and values: the next tile waits in the L2 cache

template <typename Fn>
void for_each_columns(const LinearParams& p, const Threads& threads, bool is_repeatable, Fn fn) {
  if (p.M == 0 || p.N == 0) return;
  const int64_t row_bytes = std::max<int64_t>(1, p.K * size_of(p.dtype));
  for_each_piece(threads_for(p.N * row_bytes, threads), p.N, kColumnMultiple, kLeastPieceBytes / row_bytes, fn,
                 {p.weight, p.weight_stride * size_of(p.dtype), is_repeatable});
}

// Rows of an element-wise kernel.
template <typename Params>
void for_each_rows(const Threads& threads, int64_t rows, int64_t row_bytes,
                   void (*kernel)(const Params&, int64_t begin, int64_t end), const Params& p) {
  const int64_t least = kLeastPieceBytes / std::max<int64_t>(1, row_bytes);
  for_each_piece(threads_for(rows * row_bytes, threads), rows, 1, least,
                 [kernel, p](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

// What a thread takes at a time: a tile of keys of a set of kv heads. Where heads are adjacent it is one of whole
// tokens, if need be of fewer keys: processors fetch long stretches of memory best.
struct HeadSets {
  explicit HeadSets(const AttentionParams& p) : kv_heads(p.kv_heads), tile(kAttentionTile) {
    const int64_t head_bytes = int64_t{2} * p.head_dim * size_of(p.dtype);
    int most = 1;
    if (p.k.head_stride == p.head_dim && p.v.head_stride == p.head_dim) {
      while (tile > kLeastAttentionTile && tile * kv_heads * head_bytes > kTileBytes) tile /= 2;
      most = static_cast<int>(std::max<int64_t>(1, kTileBytes / (tile * head_bytes)));
    }
    count = (kv_heads + most - 1) / most;
  }
  int begin(int64_t set) const { return static_cast<int>(set * kv_heads / count); }

  int kv_heads, tile, count;
};

// The splits of all (sequence, set of kv heads) of one call.
class AttentionTask {
 public:
  AttentionTask(const Kernels& kernels, const AttentionParams& p)
      : kernels_(kernels), p_(p), sets_(p), splits_left_(new std::atomic<int>[units()]) {
    p_.tile = sets_.tile;
    plan(p.num_splits);
  }

  int64_t units() const { return int64_t{p_.batch} * sets_.count; }

  void plan(int num_splits) {
    p_.num_splits = num_splits;
    for (int64_t unit = 0; unit < units(); ++unit) splits_left_[unit].store(num_splits, std::memory_order_relaxed);
  }

  // As decode_attention() plans, for what the sequences hold now; at most `most`.
  void plan_again(int most, int threads) {
    const int32_t longest = *std::max_element(p_.cache_seqlens, p_.cache_seqlens + p_.batch);
    plan(std::min(most, plan_splits(units(), longest, threads, kMinSplitKeys)));
  }

  // The last split to finish merges them all, in the order of the splits: one pass, deterministic.
  void run(int64_t item) {
    if (item >= units() * p_.num_splits) return;
    const int64_t unit = item / p_.num_splits;
    const int b = static_cast<int>(unit / sets_.count);
    const int begin = sets_.begin(unit % sets_.count), end = sets_.begin(unit % sets_.count + 1);
    kernels_.attention_split(p_, b, begin, end - begin, static_cast<int>(item % p_.num_splits));
    if (splits_left_[unit].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    for (int h = begin; h < end; ++h) kernels_.attention_merge(p_, b, h);
  }

 private:
  const Kernels& kernels_;
  AttentionParams p_;
  const HeadSets sets_;
  const std::unique_ptr<std::atomic<int>[]> splits_left_;
};

int64_t attention_bytes(const AttentionParams& p, int64_t keys) {
  return keys * p.kv_heads * p.head_dim * 2 * size_of(p.dtype);
}

}  // namespace

int plan_attention_splits(const AttentionParams& p, int64_t max_keys, const Threads& threads) {
  return plan_splits(int64_t{p.batch} * HeadSets(p).count, max_keys, threads.count, kMinSplitKeys);
}

void decode_attention(const Kernels& kernels, const AttentionParams& p, const Threads& threads) {
  int64_t keys = 0;
  for (int b = 0; b < p.batch; ++b) keys += p.cache_seqlens[b];
  AttentionTask task(kernels, p);
  for_each_item(threads_for(attention_bytes(p, keys), threads), task.units() * p.num_splits,
                [&task](int64_t item) { task.run(item); });
}

void record_attention(const Kernels& kernels, const AttentionParams& p, bool plans, const Threads& threads) {
  const auto task = std::make_shared<AttentionTask>(kernels, p);
  const int64_t items = task->units() * p.num_splits;
  Work work{items, 1, 1, attention_bytes(p, p.capacity * p.batch) < kSerialBytes, [task](int64_t begin, int64_t end) {
              for (int64_t item = begin; item < end; ++item) task->run(item);
            }};
  work.kind = WorkKind::attention;
  const int most = p.num_splits;
  if (plans) {
    work.prepare = [task, most](int count) { task->plan_again(most, count); };
  } else {
    work.prepare = [task, most](int) { task->plan(most); };
  }
  threads.recording->add(std::move(work));
}

int default_flat_gemm_config(const Kernels& kernels, const LinearParams& p) {
  const int configs = kernels.flat_gemm_configs(p.dtype);
  // The last configuration is AMX, where the CPU has it.
  return configs > kNumFlatGemmConfigs ? configs - 1 : 1;
}

void linear(const Kernels& kernels, const LinearParams& p, int config, const EpilogueParams* epilogue,
            const Threads& threads) {
  once(threads, [&kernels, p, config] { kernels.pack_x(p, config); });
  const EpilogueParams rest = epilogue != nullptr ? *epilogue : EpilogueParams{};
  const bool is_repeatable = rest.linear.residual == nullptr;  // that may change before the replay ends
  for_each_columns(p, threads, is_repeatable, [&kernels, p, config, rest](int64_t begin, int64_t end) {
    if (config == kGemv) {
      kernels.gemv(p, begin, end);
    } else {
      kernels.flat_gemm(p, config, begin, end);
    }
    if (rest.product != nullptr) kernels.linear_epilogue(rest, begin, end);
  });
}

void linear_epilogue(const Kernels& kernels, const EpilogueParams& p, const Threads& threads) {
  const int64_t column_bytes = std::max<int64_t>(1, p.linear.M * size_of(p.linear.dtype));
  for_each_piece(threads_for(p.linear.N * column_bytes, threads), p.linear.N, kColumnMultiple,
                 kLeastPieceBytes / column_bytes,
                 [&kernels, p](int64_t begin, int64_t end) { kernels.linear_epilogue(p, begin, end); });
}

void norm(const Kernels& kernels, const NormParams& p, const Threads& threads) {
  for_each_rows(threads, p.rows, p.width * size_of(p.dtype), kernels.norm, p);
}

void argmax(const Kernels& kernels, const ArgmaxParams& p, const Threads& threads) {
  for_each_rows(threads, p.rows, p.columns * size_of(p.dtype), kernels.argmax, p);
}

void silu_mul(const Kernels& kernels, const SiluMulParams& p, const Threads& threads) {
  for_each_rows(threads, p.rows, p.width * 2 * size_of(p.dtype), kernels.silu_mul, p);
}

void rope_append(const Kernels& kernels, const RopeParams& p, const Threads& threads) {
  const int64_t token_bytes = int64_t{p.query_heads + 2 * p.kv_heads} * p.head_dim * size_of(p.dtype);
  for_each_rows(threads, int64_t{p.batch} * p.query_len, token_bytes, kernels.rope_append, p);
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
