// gemv and flat_gemm of every kind of GPU on ragged sizes, in buffers of exactly the size of the tensors: what a GPU
// would read beyond them, AddressSanitizer sees.
#include "gpu/flat_plan.h"
#include "gpu/gemv_plan.h"
#include "linear_case.h"
#include "simt/backend.h"

using namespace fdpp;
using namespace fdpp::test;

namespace {

constexpr simt::Machine kMachines[] = {simt::Machine::nvidia, simt::Machine::cdna, simt::Machine::rdna};
constexpr int kSharedBytes = 227 * 1024;
constexpr int64_t kResident = 5;  // blocks at a time, which divides nothing
constexpr LinearSize kSizes[] = {{1, 1, 1},  {1, 17, 64}, {2, 33, 63},   {3, 16, 200}, {5, 50, 328},
                                 {9, 40, 8}, {17, 7, 0},  {33, 35, 136}, {4, 300, 520}};

// Rows that 16-byte accesses can have, and such that they cannot.
struct Layout {
  size_t alignment;
  int64_t stride;
};
constexpr Layout kLayouts[] = {{16, 8}, {8, 1}};

std::string name(const char* kernel, simt::Machine machine, int config) {
  return std::string(kernel) + " of machine " + std::to_string(static_cast<int>(machine)) + " config " +
         std::to_string(config);
}

void check_flat_gemm(simt::Machine machine, LinearSize size, Layout layout, int config) {
  const LinearCase linear(DType::f16, size, true, layout.alignment, layout.stride);
  const LinearTiles& tiles = simt::linear_tiles(machine);
  FlatGemmParams p{};
  p.linear = linear.params;
  p.padded_m = pad_m(size.M, tiles.least_padded_m);
  p.tile = config / kNumSpreads;
  const FlatTile& tile = tiles.of(p.padded_m)[p.tile];
  const FlatWork work = flat_work(size.N, size.K, size.M, p.padded_m, tile);
  const int spread = kSpreads[config % kNumSpreads];
  p.blocks = tile.direct ? direct_blocks(size.N, spread, kResident) : flat_blocks(work, spread, kResident);
  std::vector<float> partial(flat_partial_floats(p.blocks, p.padded_m, tile), NAN);
  std::vector<int32_t> arrivals(work.tiles);
  if (!tile.direct && shares_tiles(work, p.blocks)) p.partial = partial.data(), p.arrivals = arrivals.data();
  simt::run(machine, p, 1);
  linear.check(name("flat_gemm", machine, config));
}

void check_gemv(simt::Machine machine, LinearSize size, Layout layout, int team_log2) {
  const LinearCase linear(DType::bf16, size, true, layout.alignment, layout.stride);
  simt::run(machine, GemvParams{linear.params, team_log2}, 1);
  linear.check(name("gemv", machine, team_log2));
}

}  // namespace

TEST(gpu_flat_gemm_reads_nothing_beyond_its_tensors) {
  for (const simt::Machine machine : kMachines) {
    for (const LinearSize size : kSizes) {
      for (const Layout layout : kLayouts) {
        for (int config = 0; config < simt::linear_tiles(machine).fitting(kSharedBytes) * kNumSpreads; ++config) {
          check_flat_gemm(machine, size, layout, config);
        }
      }
    }
  }
}

TEST(gpu_gemv_reads_nothing_beyond_its_tensors) {
  for (const simt::Machine machine : kMachines) {
    for (const LinearSize size : kSizes) {
      for (const Layout layout : kLayouts) {
        for (int team = 0; 1 << team <= simt::linear_tiles(machine).gemv.warps; ++team)
          check_gemv(machine, size, layout, team);
      }
    }
  }
}
