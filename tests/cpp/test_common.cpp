// The pure functions of attention in csrc/common: the guard of the softmax, the split plan.
#include "check.h"
#include "common/softmax_state.h"
#include "common/split_plan.h"
#include "gpu/attention_plan.h"

using namespace fdpp;
using namespace fdpp::test;

TEST(guard_keeps_the_reference_inside_its_bounds) {
  for (const float t : {WideGuard::kLow, -1.0f, 0.0f, 1.0f, WideGuard::kHigh}) {
    const Rereference next = guard<WideGuard>(0.0f, true, t);
    CHECK(!next.moved && next.reference == 0.0f && next.rescale == 1.0f, std::to_string(t));
  }
}

TEST(guard_moves_the_reference_outside_its_bounds) {
  for (const float t : {WideGuard::kLow - 1.0f, WideGuard::kHigh + 1.0f, -1e4f, 1e4f, -3e38f, 3e38f}) {
    const Rereference next = guard<WideGuard>(0.0f, true, t);
    CHECK(next.moved && next.reference == t && std::isfinite(next.rescale), std::to_string(t));
  }
  const Rereference up = guard<WideGuard>(5.0f, false, 5.0f + WideGuard::kHigh + 3.0f);
  CHECK(up.moved && up.rescale == std::exp2(-WideGuard::kHigh - 3.0f), "a later tile above the bound");
  const Rereference down = guard<WideGuard>(5.0f, false, -1e4f);
  CHECK(!down.moved && down.reference == 5.0f, "a later tile far below contributes nothing");
}

TEST(guard_ignores_tiles_without_keys) {
  CHECK(!guard<WideGuard>(0.0f, true, -INFINITY).moved, "first");
  CHECK(!guard<WideGuard>(7.0f, false, -INFINITY).moved, "later");
}

TEST(guard_keeps_a_first_reference_that_suits_the_logits) {
  const float reference = first_reference(300.0f);
  const Rereference near = guard<WideGuard>(reference, true, reference + 5.0f);
  CHECK(!near.moved && near.reference == reference, "inside its bounds");
  for (const float phi : {0.0f, 1e4f, -1e4f, 3e38f, -3e38f, INFINITY, -INFINITY, NAN}) {
    const Rereference far = guard<WideGuard>(first_reference(phi), true, reference);
    CHECK(far.moved && far.reference == reference && far.rescale == 1.0f, std::to_string(phi));
    CHECK(!guard<WideGuard>(first_reference(phi), true, -INFINITY).moved, "no key");
  }
}

TEST(merge_is_a_plain_sum_while_no_reference_moved) {
  MergeReference reference;
  reference.add(0.0f, 3.0f);
  reference.add(0.0f, 0.5f);
  reference.add(900.0f, 0.0f);  // saw no key
  CHECK(reference.weight(0.0f) == 1.0f, "weight of a state that kept its reference");
}

TEST(merge_takes_the_largest_reference) {
  MergeReference reference;
  for (const float r : {-800.0f, -500.0f, -600.0f}) reference.add(r, 1.0f);
  CHECK(reference.weight(-500.0f) == 1.0f, "the largest");
  CHECK(reference.weight(-503.0f) == 0.125f, "2^-3");
  CHECK(reference.weight(-800.0f) == 0.0f, "far below");
}

TEST(sinks_of_any_size_are_finite_states) {
  for (const float sink : {-1e38f, -400.0f, -1.0f, 0.0f, 30.0f, 400.0f, 1e38f}) {
    const SinkState state = sink_state<WideGuard>(sink, 0.0f);
    CHECK(std::isfinite(state.l) && state.l > 0.0f, std::to_string(sink));
  }
  for (const float phi : {0.0f, 300.0f, 3e38f, INFINITY, NAN}) {
    CHECK(sink_state<WideGuard>(-INFINITY, phi).l == 0.0f, "no sink");
    CHECK(std::isnan(sink_state<WideGuard>(NAN, phi).l), "NaN");
    const SinkState state = sink_state<WideGuard>(300.0f, phi);
    CHECK_CLOSE(state.reference + std::log2(state.l), 300.0 * kLog2e, 1e-4, "the sink itself");
  }
}

TEST(splits_cover_every_key_once) {
  for (const int64_t keys : {0, 1, 63, 64, 65, 1000}) {
    for (int splits = 1; splits <= 9; ++splits) {
      for (const int64_t first : {0, 5, 130}) {
        int64_t next = first;
        for (int split = 0; split < splits; ++split) {
          const KeyRange range = split_range(first, first + keys, split, splits, 64);
          CHECK(range.begin == std::min(next, first + keys) && range.end >= range.begin, "ranges follow each other");
          next = range.end;
        }
        CHECK(next == first + keys, std::to_string(keys) + " keys in " + std::to_string(splits) + " splits");
      }
    }
  }
}

TEST(plan_of_gpus_stays_within_its_limits_and_spreads_few_sequences) {
  const AttentionMachine h200{132, 4.8e12, {async_tiles(128, 0), async_tiles(128, 1)}, {3, 1}};
  for (const int64_t units : {1, 7, 8, 64, 256, 1024, 5000}) {
    for (const int64_t keys : {1, 16, 100, 1024, 4096, 32768, 1 << 20}) {
      const AttentionPlan plan = plan_attention(units, keys, 512, h200);
      CHECK(plan.tile >= 0 && plan.tile < kAttentionTiles, "a tile");
      CHECK(plan.num_splits >= 1 && plan.num_splits <= kMaxSplits, "between 1 and kMaxSplits");
      CHECK(int64_t{plan.num_splits} * h200.tiles[plan.tile].warps * kKeyTile <
                keys + h200.tiles[plan.tile].warps * kKeyTile * 2,
            "splits have keys");
    }
  }
  const AttentionPlan one = plan_attention(8, 32768, 512, h200), many = plan_attention(1024, 4096, 512, h200);
  CHECK(one.tile == 1 && 8 * one.num_splits <= 132 && 8 * one.num_splits > 100,
        "one large block for each multiprocessor");
  CHECK(many.tile == 0 && many.num_splits <= 2, "many sequences: small blocks, which hide each other's start");
  CHECK(plan_attention(8, 32768, 512, {132, 4.8e12, {async_tiles(128, 0), {}}, {3, 0}}).tile == 0, "what fits");
}

TEST(plan_stays_within_its_limits) {
  for (const int64_t units : {0, 1, 3, 64, 1000}) {
    for (const int64_t keys : {0, 1, 256, 257, 5000, 1 << 20}) {
      for (const int workers : {1, 2, 7, 132}) {
        const int splits = plan_splits(units, keys, workers, 256);
        CHECK(splits >= 1 && splits <= kMaxSplits, "between 1 and kMaxSplits");
        CHECK(splits == 1 || keys / splits >= 256, "no split is smaller than it may be");
      }
    }
  }
  CHECK(plan_splits(1, 1 << 20, 8, 256) == 8, "one unit is spread over all workers");
  CHECK(plan_splits(8, 1 << 20, 8, 256) == 1, "enough units need no split");
}
