// The pure functions of linear layers in csrc/common: the dataflow table and its rules, how work is shared among
// blocks.
#include "check.h"
#include "common/dataflow.h"
#include "gpu/flat_plan.h"
#include "gpu/gemv_plan.h"
#include "simt/backend.h"

using namespace fdpp;
using namespace fdpp::test;

namespace {

// As their makers state them: bytes and float32 multiplications per second.
constexpr GpuFacts kA100{2.04e12, 9.75e12}, kSmallA100{1.56e12, 9.75e12}, kRtx3090{0.94e12, 17.8e12},
    kH200{4.8e12, 33.5e12}, kUnknown{0.0, 0.0};

int64_t first_flat(const GpuFacts& facts) {
  for (int64_t M = 1;; ++M) {
    if (gpu_rule(facts, DType::f16, 4096, M).impl != Impl::gemv) return M;
  }
}

}  // namespace

TEST(table_takes_the_next_measured_row_count) {
  const DataflowTable table({{DType::bf16, 64, 32, 8, Impl::flat_gemm, 2}, {DType::bf16, 64, 32, 1, Impl::gemv, -1}});
  CHECK(table.find(DType::bf16, 64, 32, 1)->impl == Impl::gemv, "measured");
  const auto between = table.find(DType::bf16, 64, 32, 3);
  CHECK(between && between->impl == Impl::flat_gemm && between->config == 2, "between two rows");
  CHECK(between->source == Source::table, "and it says so");
  CHECK(!table.find(DType::bf16, 64, 32, 9), "beyond the last");
  CHECK(!table.find(DType::f32, 64, 32, 1), "another dtype");
  CHECK(!table.find(DType::bf16, 32, 64, 1), "another shape");
}

TEST(rule_of_processors_takes_gemv_while_rows_fit_registers_and_cache) {
  const auto last_gemv = [](DType dtype, int64_t K, bool half_gemm_is_slow = false) {
    int64_t last = 0;
    for (int64_t M = 1; M <= 200; ++M) {
      if (cpu_rule(dtype, K, M, half_gemm_is_slow).impl == Impl::gemv) last = M;
    }
    return last;
  };
  CHECK(last_gemv(DType::bf16, 576) == 17 && last_gemv(DType::bf16, 576, true) == 4, "twice as many registers");
  CHECK(last_gemv(DType::bf16, 4096) == 2 && last_gemv(DType::f32, 4096) == 1, "20 KiB of x");
  CHECK(last_gemv(DType::bf16, 100000) == 1, "always at M = 1");
  CHECK(cpu_rule(DType::bf16, 4096, 24).impl == Impl::flat_gemm, "B");
  CHECK(cpu_rule(DType::bf16, 4096, 25).impl == Impl::aten && cpu_rule(DType::f32, 4096, 65).impl == Impl::aten, "C");
}

TEST(rule_of_gpus_goes_from_gemv_to_flat_gemm_to_the_vendor) {
  for (const GpuFacts& facts : {kA100, kRtx3090, kH200, kUnknown}) {
    int last = 0;
    for (int64_t M = 1; M <= 200; ++M) {
      const int impl = static_cast<int>(gpu_rule(facts, DType::bf16, 4096, M).impl);
      CHECK(impl == last || impl == last + 1, "A, B, C, each once: M = " + std::to_string(M));
      last = impl;
    }
    CHECK(last == static_cast<int>(Impl::aten), "the vendor's in the end");
  }
  for (const int64_t M : {1, 8, 64}) {
    CHECK(gpu_rule(kH200, DType::f32, 4096, M).impl == Impl::aten, "no matrix unit for float32");
    CHECK(gpu_rule(kH200, DType::f16, 4097, M).impl == Impl::aten, "no whole chunks");
  }
}

TEST(rule_of_gpus_has_an_earlier_inflection_where_vector_units_are_slow_for_their_memory) {
  CHECK(first_flat(kA100) == 2 && first_flat(kSmallA100) == 3, "where the paper measured it");
  CHECK(first_flat(kA100) < first_flat(kRtx3090), "9.6 against 38 multiplications for 2 bytes");
  CHECK(first_flat({1e12, 1e9}) == 2, "never at M = 1");
}

TEST(blocks_share_every_step_once) {
  for (const int64_t tiles : {1, 3, 8}) {
    for (const int64_t steps_per_tile : {1, 2, 5, 17}) {
      const FlatWork work{1, tiles, steps_per_tile};
      for (int64_t blocks = 1; blocks <= work.steps(); ++blocks) {
        CHECK(work.begin(0, blocks) == 0 && work.begin(blocks, blocks) == work.steps(), "from the first to the last");
        int64_t least = work.steps(), most = 0;
        for (int64_t block = 0; block < blocks; ++block) {
          const int64_t begin = work.begin(block, blocks), end = work.begin(block + 1, blocks);
          least = std::min(least, end - begin);
          most = std::max(most, end - begin);
          for (int64_t step = begin; step < end; ++step) {
            CHECK(work.block_of(step, blocks) == block, "whose step " + std::to_string(step) + " is");
          }
        }
        CHECK(least >= 1 && most - least <= 1, "equal shares");
        CHECK(shares_tiles(work, blocks) || tiles % blocks == 0, "whole tiles");
      }
    }
  }
}

TEST(configurations_of_flat_gemm_are_valid_for_every_shape) {
  for (const simt::Machine kind : {simt::Machine::nvidia, simt::Machine::cdna, simt::Machine::rdna}) {
    const LinearTiles& tiles = simt::linear_tiles(kind);
    const FlatMachine machine{132, 0.0, {3, 2, kind == simt::Machine::nvidia ? 1 : 0}};
    for (const int64_t N : {1, 16, 100, 4096, 128256}) {
      for (const int64_t K : {1, 8, 4096, 14336}) {
        for (const int64_t M : {1, 8, 17, 64}) {
          const int padded_m = pad_m(M, tiles.least_padded_m);
          CHECK(padded_m >= M && (padded_m == tiles.least_padded_m || padded_m / 2 < M), "the least padding");
          const int config = plan_flat_gemm(N, K, M, padded_m, tiles.of(padded_m), machine);
          CHECK(config >= 0 && config < tiles.fitting(227 * 1024) * kNumSpreads, "a configuration");
          for (int i = 0; i < tiles.fitting(227 * 1024) * kNumSpreads; ++i) {
            const FlatTile& tile = tiles.of(padded_m)[i / kNumSpreads];
            const FlatWork work = flat_work(N, K, M, padded_m, tile);
            const int spread = kSpreads[i % kNumSpreads];
            const int64_t blocks = tile.direct ? direct_blocks(N, spread, 264) : flat_blocks(work, spread, 264);
            CHECK(blocks >= 1, "a block at least");
            if (!tile.direct) CHECK(blocks <= work.steps(), "no block without work");
          }
        }
      }
    }
  }
}

TEST(tiles_fit_by_their_shared_memory) {
  const LinearTiles& async = simt::linear_tiles(simt::Machine::nvidia);
  CHECK(async.fitting(48 * 1024) == 0 && async.fitting(99 * 1024) == 3 && async.fitting(227 * 1024) == 4,
        "99 and 227 KiB");
  CHECK(simt::linear_tiles(simt::Machine::cdna).fitting(64 * 1024) == 2, "64 KiB");
  CHECK(simt::linear_tiles(simt::Machine::rdna).fitting(227 * 1024) == 2, "there is no large one");
}

// 132 multiprocessors of 4.8 TB/s.
TEST(plan_of_flat_gemm_fills_a_large_device) {
  const LinearTiles& tiles = simt::linear_tiles(simt::Machine::nvidia);
  const auto plan = [&](int64_t N, int64_t K, int64_t M) {
    const int padded_m = pad_m(M, 8);
    return plan_flat_gemm(N, K, M, padded_m, tiles.of(padded_m), {132, 4.8e12, {padded_m == 8 ? 3 : 2, 2, 3, 1}});
  };
  const auto spread = [](int config) { return kSpreads[config % kNumSpreads]; };
  CHECK(plan(4096, 4096, 16) / kNumSpreads == kLargeTile, "fewer rows than direct blocks would take at once");
  CHECK(spread(plan(4096, 4096, 8)) == kOneBlockPerTile, "128 large blocks need no sharing");
  CHECK(spread(plan(576, 16384, 1)) != kOneBlockPerTile,
        "18 tiles leave most multiprocessors without work, unless K is shared");
  CHECK(plan(28672, 4096, 32) / kNumSpreads == kDirectTile, "rows for all blocks of a wave");
}

TEST(batch_invariant_choice_does_not_share_by_the_number_of_tiles) {
  const LinearTiles& tiles = simt::linear_tiles(simt::Machine::nvidia);
  for (const int64_t N : {1, 100, 4096, 128256}) {
    const Choice choice = gpu_batch_invariant_choice(tiles, 132, DType::f16, N, 4096);
    CHECK(choice.impl == Impl::flat_gemm && choice.source == Source::batch_invariant, "flat GEMM");
    CHECK(kSpreads[choice.config % kNumSpreads] != kBalanced, "a spread that knows K only");
  }
  CHECK(gpu_batch_invariant_choice(tiles, 132, DType::f32, 64, 64).impl == Impl::aten, "float32");
}

TEST(teams_of_gemv_fill_whole_waves) {
  const LinearTiles& tiles = simt::linear_tiles(simt::Machine::nvidia);
  const auto team = [&](int64_t N, int64_t K) { return 1 << plan_gemv_team(N, K, 1, 132 * 4, tiles); };
  CHECK(team(1 << 20, 4096) == 1, "rows for every warp, in many waves");
  CHECK(team(4096, 4096) == 2, "512 of 528 blocks, not 256");
  CHECK(team(1, 1 << 20) == tiles.gemv.warps, "one row for the whole block");
  CHECK(team(1, 2048) == 2, "no lane without a batch of chunks");
  CHECK(team(64, 8) == 1, "a short row");
}
