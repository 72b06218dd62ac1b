// The host that executes GPU kernels: what a GPU promises works in every order, and each fault that a kernel can have
// is seen, in small kernels that are right with a step and wrong without it.
#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include "check.h"
#include "simt/cdna.h"
#include "simt/nvidia.h"
#include "simt/rdna.h"

using namespace fdpp;
using namespace fdpp::test;
using simt::Cdna;
using simt::Nvidia;
using simt::Rdna;

namespace {

constexpr int kSeeds = 50;

template <typename P, typename Kernel>
void launch(int64_t blocks, int threads, int64_t shared_bytes, uint64_t seed, const Kernel& kernel) {
  simt::launch(
      {blocks, threads, P::kWarpSize, shared_bytes}, seed,
      [](const void* argument) { (*static_cast<const Kernel*>(argument))(); }, &kernel);
}

// What the launch reports; empty when it ends well.
template <typename P, typename Kernel>
std::string report_of(int threads, int64_t shared_bytes, uint64_t seed, const Kernel& kernel) {
  try {
    launch<P>(1, threads, shared_bytes, seed, kernel);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

template <typename P, typename Kernel>
void check_reported(int threads, int64_t shared_bytes, const Kernel& kernel,
                    std::initializer_list<const char*> expected) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    const std::string report = report_of<P>(threads, shared_bytes, seed, kernel);
    for (const char* part : expected) {
      CHECK(report.find(part) != std::string::npos, std::string(part) + " is not in: " + report);
    }
  }
}

// `run<step>(seed)` tells whether the kernel's result is right: with the step always, without it not.
template <typename Run>
void check_needed(const char* step, const Run& run) {
  int right = 0, broken = 0;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) right += run.template operator()<true>(seed);
  for (uint64_t seed = 0; seed < 5; ++seed) broken += !run.template operator()<false>(seed);
  CHECK(right == kSeeds, std::string("right with ") + step);
  CHECK(broken > 0, std::string("wrong without ") + step);
}

template <typename P>
struct Shared {
  static int* ints() { return reinterpret_cast<int*>(P::shared_memory()); }
  static int load(int i) { return P::shared_load(ints() + i); }
  static void store(int i, int x) { P::shared_store(ints() + i, x); }
};

// Each thread reads what another has written.
template <typename P, typename Sync, int kThreads>
void check_exchange(const char* step, Sync sync) {
  check_needed(step, [&]<bool kStep>(uint64_t seed) {
    std::vector<int> out(kThreads, -1);
    launch<P>(1, kThreads, kThreads * sizeof(int), seed, [&] {
      const int i = P::thread_index();
      Shared<P>::store(i, i);
      if (kStep) sync();
      out[i] = Shared<P>::load((i + kThreads / 2 + 1) % kThreads);
    });
    bool right = true;
    for (int i = 0; i < kThreads; ++i) right &= out[i] == (i + kThreads / 2 + 1) % kThreads;
    return right;
  });
}

TEST(simt_missing_barrier) {
  check_exchange<Nvidia, decltype([] { Nvidia::barrier(); }), 128>("barrier", {});
  check_exchange<Cdna, decltype([] { Cdna::barrier(); }), 256>("barrier", {});
  check_exchange<Rdna, decltype([] { Rdna::barrier(); }), 128>("barrier", {});
}

TEST(simt_missing_warp_sync) {
  check_exchange<Nvidia, decltype([] { Nvidia::warp_sync(); }), 32>("warp_sync", {});
  check_exchange<Cdna, decltype([] { Cdna::warp_sync(); }), 64>("warp_sync", {});
  check_exchange<Rdna, decltype([] { Rdna::warp_sync(); }), 32>("warp_sync", {});
}

// A buffer that is filled again before everybody has read it: warps that are in step in themselves, but not with each
// other.
TEST(simt_missing_barrier_before_reuse) {
  constexpr int kWarps = 4, kRounds = 6;
  check_needed("the second barrier", []<bool kStep>(uint64_t seed) {
    bool right = true;
    launch<Nvidia>(1, 32 * kWarps, kWarps * sizeof(int), seed, [&] {
      const int lane = Nvidia::thread_index() % 32, warp = Nvidia::thread_index() / 32;
      for (int round = 0; round < kRounds; ++round) {
        if (lane == 0) Shared<Nvidia>::store(warp, 100 * round + warp);
        Nvidia::barrier();
        for (int i = 0; i < kWarps; ++i) {
          Nvidia::warp_sync();
          right &= Shared<Nvidia>::load(i) == 100 * round + i;
        }
        if (kStep) Nvidia::barrier();
      }
    });
    return right;
  });
}

TEST(simt_missing_wait) {
  check_needed("copy_wait", []<bool kStep>(uint64_t seed) {
    alignas(16) int in[128];
    for (int i = 0; i < 128; ++i) in[i] = i;
    bool right = true;
    launch<Nvidia>(1, 32, sizeof in, seed, [&] {
      const int lane = Nvidia::thread_index();
      Nvidia::copy16(Shared<Nvidia>::ints() + 4 * lane, in + 4 * lane, true);
      Nvidia::copy_commit();
      if (kStep) Nvidia::copy_wait<0>();
      Nvidia::warp_sync();
      right &= Shared<Nvidia>::load(127 - lane) == 127 - lane;
    });
    return right;
  });
}

// Others may count on a copy only after a rendezvous that orders memory: those that load matrices do not.
TEST(simt_missing_warp_sync_after_a_copy) {
  check_needed("warp_sync", []<bool kStep>(uint64_t seed) {
    alignas(16) int in[128];
    for (int i = 0; i < 128; ++i) in[i] = i;
    bool right = true;
    launch<Nvidia>(1, 32, sizeof in, seed, [&] {
      const int lane = Nvidia::thread_index();
      Nvidia::copy16(Shared<Nvidia>::ints() + 4 * lane, in + 4 * lane, true);
      Nvidia::copy_commit();
      Nvidia::copy_wait<0>();
      if (kStep) Nvidia::warp_sync();
      uint32_t x[4];
      Nvidia::matrix_load(x, Shared<Nvidia>::ints() + 4 * lane);
      for (int i = 0; i < 4; ++i) right &= x[i] == static_cast<uint32_t>(32 * i + lane);
    });
    return right;
  });
}

// A wait that leaves one group too many under way.
TEST(simt_wait_of_a_pipeline) {
  check_needed("the right count", []<bool kStep>(uint64_t seed) {
    constexpr int kTiles = 8, kStages = 3;
    alignas(16) int in[kTiles * 128];
    for (int i = 0; i < kTiles * 128; ++i) in[i] = i;
    bool right = true;
    launch<Nvidia>(1, 32, kStages * sizeof(int[128]), seed, [&] {
      const int lane = Nvidia::thread_index();
      const auto fetch = [&](int tile) {
        int* stage = Shared<Nvidia>::ints() + tile % kStages * 128;
        if (tile < kTiles) Nvidia::copy16(stage + 4 * lane, in + 128 * tile + 4 * lane, true);
        Nvidia::copy_commit();
      };
      for (int tile = 0; tile < kStages - 1; ++tile) fetch(tile);
      for (int tile = 0; tile < kTiles; ++tile) {
        Nvidia::copy_wait<kStep ? kStages - 2 : kStages - 1>();
        Nvidia::warp_sync();
        fetch(tile + kStages - 1);
        right &= Shared<Nvidia>::load(tile % kStages * 128 + 127 - lane) == tile * 128 + 127 - lane;
      }
    });
    return right;
  });
}

TEST(simt_copies_happen_when_waited_for) {
  alignas(16) int in[4][4] = {{10, 11, 12, 13}, {20, 21, 22, 23}, {30, 31, 32, 33}, {40, 41, 42, 43}};
  std::vector<int> seen;
  launch<Nvidia>(1, 32, 16 * 5, 1, [&] {
    const bool me = Nvidia::thread_index() == 7;
    const auto look = [&] {
      for (int i = 0; me && i < 5; ++i) seen.push_back(Shared<Nvidia>::load(4 * i + 1));
    };
    for (int i = 0; me && i < 5; ++i) Shared<Nvidia>::store(4 * i + 1, 0);
    for (int i = 0; i < 3; ++i) {
      if (me) Nvidia::copy16(Shared<Nvidia>::ints() + 4 * i, in[i], true);
      Nvidia::copy_commit();
    }
    if (me) Nvidia::copy16(Shared<Nvidia>::ints() + 12, nullptr, false);
    Nvidia::copy_commit();
    if (me) Nvidia::copy16(Shared<Nvidia>::ints() + 16, in[3], true);
    Nvidia::warp_sync();
    in[1][1] = 99;
    Nvidia::copy_wait<2>();
    look();
    Nvidia::warp_sync();
    look();
    Nvidia::copy_wait<0>();
    Nvidia::warp_sync();
    look();
  });
  CHECK((seen == std::vector<int>{-1, -1, -1, -1, -1, 11, 99, -1, -1, -1, 11, 99, 31, 0, -1}), "copies of each wait");

  seen.clear();
  launch<Cdna>(1, 64, 32, 1, [&] {
    if (Cdna::thread_index() != 7) return;
    Cdna::copy16(Shared<Cdna>::ints(), in[0], true);
    Cdna::copy16(Shared<Cdna>::ints() + 4, nullptr, false);
    for (int i = 0; i < 8; ++i) seen.push_back(Shared<Cdna>::load(i));
  });
  CHECK((seen == std::vector<int>{10, 11, 12, 13, 0, 0, 0, 0}), "copies through registers");
}

TEST(simt_shared_memory_starts_as_nan) {
  bool right = true;
  launch<Nvidia>(3, 32, 256, 1, [&] {
    char* shared = Nvidia::shared_memory();
    for (int i = 0; i < 256; i += 4) right &= std::isnan(Nvidia::shared_load(reinterpret_cast<float*>(shared + i)));
    for (int i = 0; i < 256; i += 2) {
      right &= std::isnan(to_float(Nvidia::shared_load(reinterpret_cast<f16*>(shared + i))));
      right &= std::isnan(to_float(Nvidia::shared_load(reinterpret_cast<bf16*>(shared + i))));
    }
    Nvidia::barrier();
    Shared<Nvidia>::store(Nvidia::thread_index(), 0);
  });
  CHECK(right, "in every block");
}

TEST(simt_missing_bound) {
  check_needed("a bound of loads", []<bool kStep>(uint64_t seed) {
    return report_of<Nvidia>(32, 20 * sizeof(int), seed,
                             [] {
                               const int i = Nvidia::thread_index();
                               if (!kStep || i < 20) Shared<Nvidia>::load(i);
                             })
        .empty();
  });
  check_needed("a bound of stores", []<bool kStep>(uint64_t seed) {
    return report_of<Cdna>(64, 20 * sizeof(int), seed,
                           [] {
                             const int i = Cdna::thread_index();
                             if (!kStep || i < 20) Shared<Cdna>::store(i, i);
                           })
        .empty();
  });
  check_needed("a bound of copies", []<bool kStep>(uint64_t seed) {
    return report_of<Nvidia>(32, 20 * 16, seed,
                             [] {
                               const int i = Nvidia::thread_index();
                               if (!kStep || i < 20) Nvidia::copy16(Nvidia::shared_memory() + 16 * i, nullptr, false);
                             })
        .empty();
  });
  check_needed("a bound of matrix rows", []<bool kStep>(uint64_t seed) {
    return report_of<Nvidia>(32, 31 * 16, seed,
                             [] {
                               const int i = Nvidia::thread_index();
                               uint32_t x[4];
                               Nvidia::matrix_load(x, Nvidia::shared_memory() + 16 * (kStep ? i % 31 : i));
                             })
        .empty();
  });
  check_reported<Nvidia>(32, 64, [] { Shared<Nvidia>::load(16 - Nvidia::thread_index()); },
                         {"load of 4 bytes at offset", "shared memory, which has 64: out of bounds"});
}

TEST(simt_misaligned_access) {
  const auto at = [](int offset) { return Nvidia::shared_memory() + offset; };
  check_reported<Nvidia>(32, 256, [&] { Nvidia::shared_load(reinterpret_cast<uint16_t*>(at(3))); },
                         {"load of 2 bytes at offset 3", "not aligned"});
  check_reported<Nvidia>(32, 256, [&] { Nvidia::shared_store(reinterpret_cast<Bytes8*>(at(12)), {}); },
                         {"store of 8 bytes at offset 12", "not aligned"});
  check_reported<Nvidia>(32, 256, [&] { Nvidia::copy16(at(8), nullptr, false); },
                         {"copy16 of 16 bytes at offset 8", "not aligned"});
  alignas(16) static const char source[32] = {};
  check_reported<Nvidia>(32, 256, [&] { Nvidia::copy16(at(0), source + 4, true); }, {"copy16 from 0x", "not aligned"});
  check_reported<Rdna>(32, 256, [&] { Rdna::copy16(at(0), source + 4, true); }, {"copy16 from 0x", "not aligned"});
  check_reported<Nvidia>(32, 256, [&] { Nvidia::coherent_load16(source + 8); },
                         {"coherent_load16 from 0x", "not aligned"});
  check_reported<Nvidia>(32, 256,
                         [&] {
                           uint32_t x[4];
                           Nvidia::matrix_load_transposed(x, at(4));
                         },
                         {"matrix_load_transposed of 16 bytes at offset 4", "not aligned"});
}

TEST(simt_diverged_barrier) {
  check_reported<Nvidia>(64, 0,
                         [] {
                           if (Nvidia::thread_index() != 40) Nvidia::barrier();
                         },
                         {"diverged", "threads 0-39, 41-63 wait at barrier (test_simt.cpp:", "threads 40 have left"});
  // Half of a warp at the barrier, half at a collective.
  check_reported<Nvidia>(64, 0,
                         [] {
                           if (Nvidia::thread_index() < 16) {
                             Nvidia::warp_sync();
                           } else {
                             Nvidia::barrier();
                           }
                         },
                         {"diverged", "threads 0-15 wait at warp_sync (", "threads 16-63 wait at barrier ("});
  check_reported<Rdna>(64, 0,
                       [] {
                         if (Rdna::thread_index() < 32) {
                           Rdna::barrier();
                         } else {
                           Rdna::barrier();
                         }
                       },
                       {"diverged", "it is at barrier (", "others wait at barrier ("});
}

TEST(simt_lane_leaves_before_a_collective) {
  check_reported<Cdna>(128, 0,
                       [] {
                         if (Cdna::thread_index() != 70) Cdna::any(false);
                       },
                       {"diverged", "threads 64-69, 71-127 wait at any (", "have left the kernel"});
}

TEST(simt_missing_publish) {
  check_reported<Cdna>(128, 0,
                       [] {
                         int counter = 0;
                         if (Cdna::thread_index() < 64) Cdna::publish();
                         Cdna::barrier();
                         if (Cdna::thread_index() == 0) Cdna::arrive(&counter, 2);
                       },
                       {"arrives when 64 of 128 threads have published"});
}

TEST(simt_arrival_at_a_stale_counter) {
  check_reported<Nvidia>(32, 0,
                         [] {
                           int counter = 2;
                           Nvidia::publish();
                           Nvidia::barrier();
                           if (Nvidia::thread_index() == 0) Nvidia::arrive(&counter, 2);
                         },
                         {"arrives at a counter of 2, with 2 blocks to come"});
}

TEST(simt_mismatched_collectives) {
  check_reported<Nvidia>(32, 0,
                         [] {
                           if (Nvidia::thread_index() < 9) {
                             Nvidia::shuffle(1, 0);
                           } else {
                             Nvidia::any(true);
                           }
                         },
                         {"diverged", " shuffle (test_simt.cpp:", " any (test_simt.cpp:"});
  check_reported<Nvidia>(32, 0,
                         [] {
                           if (Nvidia::thread_index() < 9) {
                             Nvidia::any(false);
                           } else {
                             Nvidia::any(true);
                           }
                         },
                         {"diverged"});
  check_reported<Nvidia>(32, 0, [] { Nvidia::shuffle(1, Nvidia::thread_index() + 1); }, {"shuffle from lane 32"});
}

TEST(simt_unequal_halves) {
  check_reported<Rdna>(32, 0,
                       [] {
                         float c[8] = {};
                         uint32_t a[8] = {}, b[8] = {};
                         b[3] = Rdna::thread_index() == 21 ? 1 : 0;
                         Rdna::multiply<bf16>(c, a, b);
                       },
                       {"multiply: the operands of lanes 5 and 21 differ"});
}

TEST(simt_exception_in_a_kernel) {
  check_reported<Nvidia>(32, 0,
                         [] {
                           Nvidia::warp_sync();
                           if (Nvidia::thread_index() == 3) throw std::runtime_error("what it says");
                           Nvidia::warp_sync();
                         },
                         {"thread 3: exception: what it says"});
}

template <typename P>
void check_collectives() {
  constexpr int kThreads = 2 * P::kWarpSize;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    bool right = true;
    launch<P>(1, kThreads, 0, seed, [&] {
      const int i = P::thread_index(), warp = i / P::kWarpSize * P::kWarpSize, lane = i - warp;
      right &= P::any(i == P::kWarpSize + 3) == (warp > 0);
      for (int mask = 1; mask < P::kWarpSize; mask *= 2) right &= P::shuffle_xor(i, mask) == (i ^ mask);
      right &= P::shuffle(i, (5 * lane + 3) % P::kWarpSize) == warp + (5 * lane + 3) % P::kWarpSize;
      right &= !P::any(false);
    });
    CHECK(right, "seed " + std::to_string(seed));
  }
}

TEST(simt_collectives) {
  check_collectives<Nvidia>();
  check_collectives<Cdna>();
  check_collectives<Rdna>();
}

std::vector<int> order_of(uint64_t seed) {
  std::vector<int> order;
  launch<Nvidia>(8, 64, 0, seed, [&] {
    for (int i = 0; i < 3; ++i) {
      order.push_back(64 * Nvidia::block_index() + Nvidia::thread_index());
      Nvidia::warp_sync();
    }
    Nvidia::barrier();
    order.push_back(64 * Nvidia::block_index() + Nvidia::thread_index());
  });
  return order;
}

TEST(simt_order) {
  const std::vector<int> first = order_of(1);
  CHECK(first == order_of(1), "one seed, one order");
  CHECK(first != order_of(2), "another seed, another order");
  std::vector<int> blocks;
  for (int thread : first) {
    if (blocks.empty() || blocks.back() != thread / 64) blocks.push_back(thread / 64);
  }
  CHECK(blocks.size() == 8 && !std::is_sorted(blocks.begin(), blocks.end()),
        "blocks one after another, in random order");
  std::vector<int> sorted = first;
  std::sort(sorted.begin(), sorted.end());
  for (size_t i = 0; i < sorted.size(); ++i)
    CHECK(sorted[i] == static_cast<int>(i) / 4, "every thread, every step, once");
}

TEST(simt_host_threads_launch_at_the_same_time) {
  std::vector<int> orders[4];
  std::vector<std::thread> workers;
  for (int i = 0; i < 4; ++i) workers.emplace_back([&orders, i] { orders[i] = order_of(i % 2); });
  for (std::thread& worker : workers) worker.join();
  CHECK(orders[0] == orders[2] && orders[1] == orders[3] && orders[0] != orders[1], "orders");
}

// Where an element of a matrix lies: the inverse of how csrc/simt states it, as errors of operands can cancel in
// fragments.
struct Place {
  int lane, element;
};

struct M16N8K16 {  // PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type"
  using P = Nvidia;
  static constexpr int kColumns = 8, kA = 8, kB = 4, kC = 4;
  static Place a(int i, int k) { return {i % 8 * 4 + k % 8 / 2, k % 2 + i / 8 * 2 + k / 8 * 4}; }
  static Place b(int k, int j) { return {j * 4 + k % 8 / 2, k % 2 + k / 8 * 2}; }
  static Place c(int i, int j) { return {i % 8 * 4 + j / 2, j % 2 + i / 8 * 2}; }
  static void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    P::multiply<f16>(c, a, b[0], b[1]);
  }
};

struct Mfma {  // AMD Matrix Instruction Calculator, V_MFMA_F32_16X16X16_F16
  using P = Cdna;
  static constexpr int kColumns = 16, kA = 4, kB = 4, kC = 4;
  static Place a(int i, int k) { return {k / 4 * 16 + i, k % 4}; }
  static Place b(int k, int j) { return {k / 4 * 16 + j, k % 4}; }
  static Place c(int i, int j) { return {i / 4 * 16 + j, i % 4}; }
  static void multiply(float (&c)[4], const uint32_t (&a)[2], const uint32_t (&b)[2]) {
    P::multiply<f16>(c, Bytes8{{a[0], a[1]}}, Bytes8{{b[0], b[1]}});
  }
};

struct
    Wmma {  // "RDNA3 Instruction Set Architecture", "Wave Matrix Multiply Accumulate"; operands without their second half
  using P = Rdna;
  static constexpr int kColumns = 16, kA = 16, kB = 16, kC = 8;
  static Place a(int i, int k) { return {i, k}; }
  static Place b(int k, int j) { return {j, k}; }
  static Place c(int i, int j) { return {i % 2 * 16 + j, i / 2}; }
  static void multiply(float (&c)[8], const uint32_t (&a)[8], const uint32_t (&b)[8]) { P::multiply<f16>(c, a, b); }
};

template <typename M>
void check_layout() {
  Random random(1);
  std::vector<std::vector<double>> a(16, std::vector<double>(16)), b(16, std::vector<double>(M::kColumns)), c = b;
  uint32_t left[64][M::kA / 2] = {}, right[64][M::kB / 2] = {};
  float sums[64][M::kC];
  const auto put = [&](auto& lanes, Place place, double value) {
    const uint32_t bits = from_float<f16>(static_cast<float>(value)).bits;
    lanes[place.lane][place.element / 2] |= bits << place.element % 2 * 16;
    if constexpr (std::is_same_v<M, Wmma>) lanes[place.lane + 16][place.element / 2] |= bits << place.element % 2 * 16;
  };
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) put(left, M::a(i, j), a[i][j] = static_cast<double>(pick(random, -9, 9)));
    for (int j = 0; j < M::kColumns; ++j) {
      put(right, M::b(i, j), b[i][j] = static_cast<double>(pick(random, -9, 9)));
      const Place place = M::c(i, j);
      sums[place.lane][place.element] = c[i][j] = static_cast<double>(pick(random, -9, 9));
    }
  }
  launch<typename M::P>(1, M::P::kWarpSize, 0, 1, [&] {
    const int lane = M::P::thread_index();
    M::multiply(sums[lane], left[lane], right[lane]);
  });
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < M::kColumns; ++j) {
      double expected = c[i][j];
      for (int k = 0; k < 16; ++k) expected += a[i][k] * b[k][j];
      const Place place = M::c(i, j);
      CHECK(sums[place.lane][place.element] == expected, "row " + std::to_string(i) + " column " + std::to_string(j));
    }
  }
}

TEST(simt_matrix_layouts) {
  check_layout<M16N8K16>();
  check_layout<Mfma>();
  check_layout<Wmma>();
}

// PTX ISA, "Warp-level matrix load instruction: ldmatrix".
TEST(simt_matrix_load) {
  bool right = true;
  launch<Nvidia>(1, 32, 32 * 16, 1, [&] {
    const int lane = Nvidia::thread_index();
    char* row = Nvidia::shared_memory() + 16 * lane;  // lane % 8 of matrix lane / 8
    for (int i = 0; i < 8; ++i)
      Nvidia::shared_store(reinterpret_cast<uint16_t*>(row) + i, static_cast<uint16_t>(8 * lane + i));
    Nvidia::warp_sync();
    uint32_t plain[4], transposed[4];
    Nvidia::matrix_load(plain, row);
    Nvidia::matrix_load_transposed(transposed, row);
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto at = [&](int line, int column) { return static_cast<uint32_t>(64 * matrix + 8 * line + column); };
      const int group = lane / 4, pair = lane % 4 * 2;
      right &= plain[matrix] == (at(group, pair) | at(group, pair + 1) << 16);
      right &= transposed[matrix] == (at(pair, group) | at(pair + 1, group) << 16);
    }
  });
  CHECK(right, "parts of every lane");
}

// All that a kernel does with fragments, on one tile of rounded normal numbers, against sums in double.
template <typename P, typename T>
void check_fragments(uint64_t seed) {
  using F = typename P::template Fragments<T>;
  constexpr int kStride = 24;  // of rows in shared memory
  constexpr double kTolerance = 1e-5;
  Random random(seed);
  std::normal_distribution<float> normal;
  std::vector<T> in(3 * 256);
  for (T& x : in) x = from_float<T>(normal(random));
  const auto q = [&](int row, int dim) { return double{to_float(in[16 * row + dim])}; };
  const auto k = [&](int key, int dim) { return double{to_float(in[256 + 16 * key + dim])}; };
  const auto v = [&](int key, int dim) { return double{to_float(in[512 + 16 * key + dim])}; };
  float scores[16][16], outputs[16][16], row_max[16], row_sum[16];
  int owners[16][16] = {}, leaders[16] = {};
  launch<P>(1, P::kWarpSize, sizeof(T[3][16][kStride]), seed, [&] {
    const int lane = P::thread_index();
    T* shared = reinterpret_cast<T*>(P::shared_memory());
    for (int i = lane; i < 3 * 256; i += P::kWarpSize) P::shared_store(shared + i / 16 * kStride + i % 16, in[i]);
    P::warp_sync();
    float s[F::kValues] = {}, o[F::kValues] = {};
    F::multiply_scores(s, shared, shared + 16 * kStride, kStride);
    F::multiply_values(o, F::pack(s), shared + 32 * kStride, kStride);
    for (int i = 0; i < F::kValues; ++i) {
      const int row = F::row(lane, F::slot(i)), column = F::column(lane, i);
      scores[row][column] = s[i];
      outputs[row][column] = o[i];
      ++owners[row][column];
    }
    for (int slot = 0; slot < F::kSlots; ++slot) {
      float max = -INFINITY, sum = 0;
      for (int i = 0; i < F::kValues; ++i) {
        if (F::slot(i) == slot) max = std::max(max, s[i]), sum += s[i];
      }
      max = F::max_of_row(max);
      sum = F::sum_of_row(sum);
      if (F::leads_row(lane)) {
        row_max[F::row(lane, slot)] = max;
        row_sum[F::row(lane, slot)] = sum;
        ++leaders[F::row(lane, slot)];
      }
    }
  });
  for (int i = 0; i < 16; ++i) {
    float max = -INFINITY;
    double sum = 0;
    for (int j = 0; j < 16; ++j) {
      const std::string where = "row " + std::to_string(i) + " column " + std::to_string(j);
      double score = 0, output = 0;
      for (int d = 0; d < 16; ++d) {
        score += q(i, d) * k(j, d);
        output += double{to_float(from_float<T>(scores[i][d]))} * v(d, j);
      }
      CHECK(owners[i][j] == 1, where);
      CHECK_CLOSE(scores[i][j], score, kTolerance * 16, "score, " + where);
      CHECK_CLOSE(outputs[i][j], output, kTolerance * 64, "output, " + where);
      max = std::max(max, scores[i][j]);
      sum += scores[i][j];
    }
    CHECK(leaders[i] == 1, "one lane leads a row");
    CHECK_CLOSE(row_max[i], max, 0.0, "max of row");
    CHECK_CLOSE(row_sum[i], sum, kTolerance * 16, "sum of row");
  }
}

TEST(simt_fragments) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    check_fragments<Nvidia, bf16>(seed);
    check_fragments<Nvidia, f16>(seed);
    check_fragments<Cdna, bf16>(seed);
    check_fragments<Cdna, f16>(seed);
    check_fragments<Rdna, bf16>(seed);
    check_fragments<Rdna, f16>(seed);
  }
}

}  // namespace
