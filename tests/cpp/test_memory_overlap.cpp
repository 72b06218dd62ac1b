// Shared memory of strided tensors, compared with the sets of their bytes.
#include <algorithm>
#include <set>

#include "check.h"
#include "common/memory_overlap.h"

using namespace fdpp;
using namespace fdpp::test;

namespace {

struct View {
  int64_t offset, element_bytes;  // bytes
  std::vector<int64_t> sizes, strides;

  MemoryLayout layout() const {
    static char storage[1 << 16];  // only its address counts
    const auto dims = static_cast<int64_t>(sizes.size());
    return memory_layout(storage + offset, element_bytes, sizes.data(), strides.data(), dims);
  }

  // Every byte of every element, as often as an element has it.
  std::vector<int64_t> bytes() const {
    std::vector<int64_t> firsts{offset};
    for (size_t d = 0; d < sizes.size(); ++d) {
      std::vector<int64_t> next;
      for (const int64_t first : firsts) {
        for (int64_t i = 0; i < sizes[d]; ++i) next.push_back(first + i * strides[d] * element_bytes);
      }
      firsts = next;
    }
    std::vector<int64_t> all;
    for (const int64_t first : firsts) {
      for (int64_t byte = 0; byte < element_bytes; ++byte) all.push_back(first + byte);
    }
    return all;
  }

  std::string text() const {
    std::string text = std::to_string(offset) + " + " + std::to_string(element_bytes) + " *";
    for (size_t d = 0; d < sizes.size(); ++d) text += " " + std::to_string(sizes[d]) + ":" + std::to_string(strides[d]);
    return text;
  }
};

// Mostly what views of tensors are: nested strides with gaps, in any order; now and then any strides at all.
View random_view(Random& random) {
  View view{pick(random, 0, 40), int64_t{1} << pick(random, 0, 3), {}, {}};
  int64_t stride = 1;
  const bool wild = pick(random, 0, 3) == 0;
  for (int64_t d = pick(random, 0, 4); d > 0; --d) {
    view.sizes.insert(view.sizes.begin(), pick(random, 0, 9) == 0 ? 0 : pick(random, 1, 4));
    view.strides.insert(view.strides.begin(), wild ? pick(random, 0, 12) : stride);
    stride *= view.sizes.front() + pick(random, 0, 2);
    if (pick(random, 0, 9) == 0) view.strides.front() = 0;
  }
  return view;
}

}  // namespace

TEST(share_memory_is_what_the_bytes_say) {
  Random random(1);
  int shared = 0, apart = 0;
  for (int round = 0; round < 20000; ++round) {
    const View a = random_view(random);
    View b = random_view(random);
    if (pick(random, 0, 1) == 0) b = {b.offset, a.element_bytes, a.sizes, a.strides};  // two places of one layout
    const std::vector<int64_t> of_a = a.bytes(), of_b = b.bytes();
    const std::set<int64_t> bytes(of_a.begin(), of_a.end());
    const bool expected = std::any_of(of_b.begin(), of_b.end(), [&](int64_t byte) { return bytes.count(byte) != 0; });
    ++(expected ? shared : apart);
    CHECK(share_memory(a.layout(), b.layout()) == expected, a.text() + " and " + b.text());
    CHECK(share_memory(b.layout(), a.layout()) == expected, b.text() + " and " + a.text());
  }
  CHECK(shared > 4000 && apart > 4000, "both happen");
}

TEST(overlaps_itself_is_what_the_bytes_say) {
  Random random(2);
  int overlapping = 0, apart = 0;
  for (int round = 0; round < 20000; ++round) {
    const View view = random_view(random);
    const std::vector<int64_t> bytes = view.bytes();
    const bool expected = std::set<int64_t>(bytes.begin(), bytes.end()).size() != bytes.size();
    ++(expected ? overlapping : apart);
    CHECK(overlaps_itself(view.layout()) == expected, view.text());
  }
  CHECK(overlapping > 2000 && apart > 4000, "both happen");
}

TEST(keys_and_values_of_one_storage_interleave) {
  constexpr int64_t B = 9, S = 1000, H = 8, D = 128, E = 2;
  const auto pair = [](std::vector<int64_t> sizes, std::vector<int64_t> strides, int64_t offset) {
    const View k{0, E, sizes, strides}, v{offset * E, E, sizes, strides};
    const View wide{(offset - 1) * E, E, sizes, strides};  // begins in the last element before the values
    CHECK(!share_memory(k.layout(), v.layout()) && !share_memory(v.layout(), k.layout()), k.text());
    CHECK(share_memory(v.layout(), wide.layout()), k.text());
    CHECK(!overlaps_itself(k.layout()), k.text());
  };
  pair({B, S, H, D}, {S * H * D, H * D, D, 1}, B * S * H * D);  // [2, B, S, H, D]
  pair({B, S, H, D}, {2 * S * H * D, H * D, D, 1}, S * H * D);  // [B, 2, S, H, D]
  pair({B, S, H, D}, {S * 2 * H * D, 2 * H * D, D, 1}, H * D);  // [B, S, 2, H, D]
  pair({B, S, H, D}, {S * H * 2 * D, H * 2 * D, 2 * D, 1}, D);  // [B, S, H, 2 D]
  pair({B, S, H, D}, {2 * H * S * D, D, S * D, 1}, H * S * D);  // [B, 2, H, S, D]
}

TEST(many_dimensions_count_as_one_piece) {
  const std::vector<int64_t> sizes(12, 2);
  std::vector<int64_t> strides(12);
  for (size_t d = 0; d < strides.size(); ++d) strides[d] = int64_t{3} << (2 * (11 - d));
  const View view{0, 1, sizes, strides}, between{1, 1, {1}, {1}}, after{view.bytes().back() + 1, 1, {1}, {1}};
  CHECK(share_memory(view.layout(), between.layout()) && overlaps_itself(view.layout()), "rather too often");
  CHECK(!share_memory(view.layout(), after.layout()), "after it");
}
