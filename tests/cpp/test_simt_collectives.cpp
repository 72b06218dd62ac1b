// The executor of GPU kernels: what a GPU promises to warps and matrices works in every order.
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

template <typename Arch>
void check_collectives() {
  constexpr int kThreads = 2 * Arch::kWarpSize;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    bool right = true;
    launch<Arch>(1, kThreads, 0, seed, [&] {
      const int i = Arch::thread_index(), warp = i / Arch::kWarpSize * Arch::kWarpSize, lane = i - warp;
      right &= Arch::any(i == Arch::kWarpSize + 3) == (warp > 0);
      for (int mask = 1; mask < Arch::kWarpSize; mask *= 2) right &= Arch::shuffle_xor(i, mask) == (i ^ mask);
      right &= Arch::shuffle(i, (5 * lane + 3) % Arch::kWarpSize) == warp + (5 * lane + 3) % Arch::kWarpSize;
      right &= !Arch::any(false);
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
  using Arch = Nvidia;
  static constexpr int kColumns = 8, kA = 8, kB = 4, kC = 4;
  static Place a(int i, int k) { return {i % 8 * 4 + k % 8 / 2, k % 2 + i / 8 * 2 + k / 8 * 4}; }
  static Place b(int k, int j) { return {j * 4 + k % 8 / 2, k % 2 + k / 8 * 2}; }
  static Place c(int i, int j) { return {i % 8 * 4 + j / 2, j % 2 + i / 8 * 2}; }
  static void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Arch::multiply<f16>(c, a, b[0], b[1]);
  }
};

struct Mfma {  // AMD Matrix Instruction Calculator, V_MFMA_F32_16X16X16_F16
  using Arch = Cdna;
  static constexpr int kColumns = 16, kA = 4, kB = 4, kC = 4;
  static Place a(int i, int k) { return {k / 4 * 16 + i, k % 4}; }
  static Place b(int k, int j) { return {k / 4 * 16 + j, k % 4}; }
  static Place c(int i, int j) { return {i / 4 * 16 + j, i % 4}; }
  static void multiply(float (&c)[4], const uint32_t (&a)[2], const uint32_t (&b)[2]) {
    Arch::multiply<f16>(c, Bytes8{{a[0], a[1]}}, Bytes8{{b[0], b[1]}});
  }
};

// "RDNA3 Instruction Set Architecture", "Wave Matrix Multiply Accumulate"; operands without their second half.
struct Wmma {
  using Arch = Rdna;
  static constexpr int kColumns = 16, kA = 16, kB = 16, kC = 8;
  static Place a(int i, int k) { return {i, k}; }
  static Place b(int k, int j) { return {j, k}; }
  static Place c(int i, int j) { return {i % 2 * 16 + j, i / 2}; }
  static void multiply(float (&c)[8], const uint32_t (&a)[8], const uint32_t (&b)[8]) { Arch::multiply<f16>(c, a, b); }
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
  launch<typename M::Arch>(1, M::Arch::kWarpSize, 0, 1, [&] {
    const int lane = M::Arch::thread_index();
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
template <typename Arch, typename T>
void check_fragments(uint64_t seed) {
  using F = typename Arch::template Fragments<T>;
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
  launch<Arch>(1, Arch::kWarpSize, sizeof(T[3][16][kStride]), seed, [&] {
    const int lane = Arch::thread_index();
    T* shared = reinterpret_cast<T*>(Arch::shared_memory());
    for (int i = lane; i < 3 * 256; i += Arch::kWarpSize) Arch::shared_store(shared + i / 16 * kStride + i % 16, in[i]);
    Arch::warp_sync();
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
