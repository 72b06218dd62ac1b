// The executor of GPU kernels sees each fault that a kernel can have, in small kernels that are right with a step and
// wrong without it.
#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include "check.h"
#include "simt/cdna.h"
#include "simt/nvidia.h"
#include "simt/rdna.h"
#include "simt_launch.h"

using namespace fdpp;
using namespace fdpp::test;
using simt::Cdna;
using simt::Nvidia;
using simt::Rdna;

namespace {

// What the launch reports; empty when it ends well.
template <typename Arch, typename Kernel>
std::string report_of(int threads, int64_t shared_bytes, uint64_t seed, const Kernel& kernel) {
  try {
    launch<Arch>(1, threads, shared_bytes, seed, kernel);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

template <typename Arch, typename Kernel>
void check_reported(int threads, int64_t shared_bytes, const Kernel& kernel,
                    std::initializer_list<const char*> expected) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    const std::string report = report_of<Arch>(threads, shared_bytes, seed, kernel);
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

template <typename Arch>
struct Shared {
  static int* ints() { return reinterpret_cast<int*>(Arch::shared_memory()); }
  static int load(int i) { return Arch::shared_load(ints() + i); }
  static void store(int i, int x) { Arch::shared_store(ints() + i, x); }
};

// Each thread reads what another has written.
template <typename Arch, typename Sync, int kThreads>
void check_exchange(const char* step, Sync sync) {
  check_needed(step, [&]<bool kStep>(uint64_t seed) {
    std::vector<int> out(kThreads, -1);
    launch<Arch>(1, kThreads, kThreads * sizeof(int), seed, [&] {
      const int i = Arch::thread_index();
      Shared<Arch>::store(i, i);
      if (kStep) sync();
      out[i] = Shared<Arch>::load((i + kThreads / 2 + 1) % kThreads);
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

}  // namespace
