// decode_attention of every instruction set: random shapes, layouts and options, in buffers of exactly the size of the
// tensors, with every slot that no sequence uses out of bounds.
#include <algorithm>
#include <numeric>

#include "check.h"
#include "common/head_dims.h"
#include "cpu/backend.h"
#include "cpu/cpu_features.h"

using namespace fdpp;
using namespace fdpp::test;

namespace {

constexpr int kGroups[] = {1, 2, 3, 5, 8};

std::vector<float> normal_floats(Random& random, int64_t count, double scale) {
  std::normal_distribution<double> normal(0.0, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(normal(random));
  return values;
}

struct Problem {
  Problem(uint64_t seed, DType dtype) : random(seed) {
    p.dtype = dtype;
    p.batch = static_cast<int>(pick(random, 1, 3));
    p.kv_heads = static_cast<int>(pick(random, 1, 3));
    p.query_heads = p.kv_heads * kGroups[pick(random, 0, 4)];
    p.query_len = pick(random, 0, 1) == 0 ? 1 : static_cast<int>(pick(random, 1, 16));
    p.head_dim = kHeadDims[pick(random, 0, 5)];
    p.num_splits = static_cast<int>(pick(random, 1, 5));
    p.softmax_scale = static_cast<float>(1.0 / std::sqrt(p.head_dim));
    p.window = pick(random, 0, 2) == 0 ? pick(random, 0, 100) : -1;
    const float caps[] = {0.0f, 0.0f, 20.0f, 1e6f};
    p.softcap = caps[pick(random, 0, 3)];
    logit_scale = pick(random, 0, 2) == 0 ? 60.0 : 1.0;

    lengths.resize(p.batch);
    for (int32_t& length : lengths) length = static_cast<int32_t>(pick(random, 0, pick(random, 0, 1) == 0 ? 20 : 200));
    lay_out();
    fill();

    const auto optional = [&](std::vector<float>& values, double scale) -> const float* {
      values = normal_floats(random, p.query_heads, scale);
      return pick(random, 0, 1) == 0 ? values.data() : nullptr;
    };
    p.phi = optional(phi, 5.0);
    // Now and then a reference that is far from every logit, so that the guard has to move it, or that says nothing.
    const float off[] = {0.0f, 0.0f, 300.0f, -300.0f, 1e6f, -INFINITY, INFINITY, NAN};
    for (const float shift = off[pick(random, 0, 7)]; float& value : phi) value += shift;
    p.alibi_slopes = optional(slopes, 0.1);
    p.sinks = optional(sinks, 3.0);
    counts.assign(p.query_heads, 0);
    p.rereference_count = counts.data();
    p.cache_seqlens = lengths.data();
  }

  // Contiguous, or pages in random order; ids past a sequence's last page are bogus.
  void lay_out() {
    const int32_t longest = *std::max_element(lengths.begin(), lengths.end());
    if (pick(random, 0, 1) == 0) {
      p.layout = {nullptr, 0, longest + pick(random, 0, 3), p.batch};
      return;
    }
    const int page = static_cast<int>(pick(random, 1, 24));
    const int max_pages = (longest + page - 1) / page + 1;
    std::vector<int32_t> pages(static_cast<size_t>(p.batch) * max_pages);
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), random);
    p.layout.num_blocks = static_cast<int64_t>(pages.size());
    for (int b = 0; b < p.batch; ++b) {
      for (int i = (lengths[b] + page - 1) / page; i < max_pages; ++i)
        pages[b * max_pages + i] = i % 2 == 0 ? -1 : 1 << 30;
    }
    block_table = pages;
    p.layout.block_table = block_table.data();
    p.layout.block_table_stride = max_pages;
    p.layout.page_size = page;
  }

  int64_t slot(int b, int64_t position) const {
    if (block_table.empty()) return b * p.layout.page_size + position;
    const int64_t page = position / p.layout.page_size;
    return block_table[b * p.layout.block_table_stride + page] * p.layout.page_size + position % p.layout.page_size;
  }

  void fill() {
    const int64_t token = int64_t{p.kv_heads} * p.head_dim, slots = p.layout.num_blocks * p.layout.page_size;
    p.q_head_stride = p.head_dim + pick(random, 0, 2);
    p.q_token_stride = p.query_heads * p.q_head_stride;
    p.q_batch_stride = p.query_len * p.q_token_stride;
    const int64_t queries = int64_t{p.batch} * p.query_len * p.query_heads;
    q = std::make_unique<Buffer>(
        Buffer::normal(p.dtype, (queries - 1) * p.q_head_stride + p.head_dim, random, logit_scale));
    k = std::make_unique<Buffer>(Buffer::normal(p.dtype, slots * token, random));
    v = std::make_unique<Buffer>(Buffer::normal(p.dtype, slots * token, random));
    std::vector<bool> used(static_cast<size_t>(slots), false);
    for (int b = 0; b < p.batch; ++b) {
      for (int32_t j = 0; j < lengths[b]; ++j) used[slot(b, j)] = true;
    }
    for (int64_t s = 0; s < slots; ++s) {
      if (used[s]) continue;
      for (int64_t i = s * token; i < (s + 1) * token; ++i) k->set(i, kNan), v->set(i, kNan);
    }
    // Poisoned after the last write: a single unused element in between would leave the whole of it readable.
    for (int64_t s = 0; s < slots; ++s) {
      if (!used[s]) k->forbid(s * token, (s + 1) * token), v->forbid(s * token, (s + 1) * token);
    }
    p.q = q->data();
    p.k = {k->data(), p.layout.page_size * token, token, p.head_dim};
    p.v = {v->data(), p.layout.page_size * token, token, p.head_dim};
    out = std::make_unique<Buffer>(p.dtype, queries * p.head_dim);
    p.out = out->data();
  }

  void run(const cpu::Kernels& kernels, int num_threads) {
    const int64_t rows = int64_t{p.batch} * p.query_heads * p.query_len;
    const Scratch partial = scratch(rows * p.num_splits * attention_row_floats(p.head_dim) * int64_t{sizeof(float)});
    p.partial = reinterpret_cast<float*>(partial.get());
    cpu::decode_attention(kernels, p, threads(num_threads));
  }

  double q_at(int b, int i, int h, int d) const {
    return (*q)[b * p.q_batch_stride + i * p.q_token_stride + h * p.q_head_stride + d];
  }

  // Compares one row of the result with softmax(logits) V in double.
  void check_row(int b, int i, int h, const std::string& what) const {
    const int64_t token = int64_t{p.kv_heads} * p.head_dim,
                  head = int64_t{h / (p.query_heads / p.kv_heads)} * p.head_dim;
    const int64_t query = int64_t{lengths[b]} - p.query_len + i;
    const int64_t first = p.window < 0 ? 0 : std::max<int64_t>(0, query - p.window);
    std::vector<double> logits;
    double largest = 0.0;
    double most = p.sinks != nullptr ? p.sinks[h] : -std::numeric_limits<double>::infinity();
    for (int64_t j = first; j <= query; ++j) {
      double logit = 0.0;
      for (int d = 0; d < p.head_dim; ++d) logit += q_at(b, i, h, d) * (*k)[slot(b, j) * token + head + d];
      logit *= p.softmax_scale;
      largest = std::max(largest, std::fabs(logit));
      if (p.softcap > 0.0f) logit = p.softcap * std::tanh(logit / p.softcap);
      if (p.alibi_slopes != nullptr) logit -= p.alibi_slopes[h] * static_cast<double>(query - j);
      most = std::max(most, logit);
      logits.push_back(logit);
    }
    double denominator = p.sinks != nullptr ? std::exp(p.sinks[h] - most) : 0.0;
    for (double& logit : logits) denominator += logit = std::exp(logit - most);
    const double probability =
        (p.dtype == DType::f32 ? 0.0 : roundoff(p.dtype)) + 4 * kFloatRoundoff * (16 + 2 * largest);
    for (int d = 0; d < p.head_dim; ++d) {
      double sum = 0.0, magnitude = 0.0;
      for (size_t j = 0; j < logits.size(); ++j) {
        const double term = logits[j] / denominator * (*v)[slot(b, first + static_cast<int64_t>(j)) * token + head + d];
        sum += term;
        magnitude += std::fabs(term);
      }
      const double actual = (*out)[((int64_t{b} * p.query_len + i) * p.query_heads + h) * p.head_dim + d];
      CHECK_CLOSE(actual, sum, roundoff(p.dtype) * std::fabs(sum) + probability * magnitude + underflow(p.dtype), what);
    }
  }

  Random random;
  AttentionParams p{};
  double logit_scale;
  std::vector<int32_t> lengths, block_table;
  std::vector<float> phi, slopes, sinks;
  std::vector<int64_t> counts;
  std::unique_ptr<Buffer> q, k, v, out;
};

}  // namespace

TEST(attention) {
  for (const cpu::Kernels* kernels : cpu::available_kernels()) {
    for (const DType dtype : kDTypes) {
      for (uint64_t seed = 0; seed < 40; ++seed) {
        Problem problem(seed, dtype);
        problem.run(*kernels, seed % 3 == 0 ? 3 : 1);
        const AttentionParams& p = problem.p;
        const std::string what = std::string(kernels->name) + " " + name_of(dtype) + " seed " + std::to_string(seed);
        for (int b = 0; b < p.batch; ++b) {
          for (int i = 0; i < p.query_len; ++i) {
            for (int h = 0; h < p.query_heads; ++h) problem.check_row(b, i, h, what);
          }
        }
      }
    }
  }
}

TEST(attention_gives_the_same_bits_on_any_number_of_threads) {
  for (const cpu::Kernels* kernels : cpu::available_kernels()) {
    for (uint64_t seed = 100; seed < 110; ++seed) {
      Problem problem(seed, DType::bf16);
      problem.run(*kernels, 1);
      const Buffer once(*problem.out);
      const std::vector<int64_t> counts = problem.counts;
      problem.run(*kernels, 4);
      for (int64_t i = 0; i < once.count(); ++i) CHECK((*problem.out)[i] == once[i], kernels->name);
      for (size_t h = 0; h < counts.size(); ++h) CHECK(problem.counts[h] == 2 * counts[h], "counts add up");
    }
  }
}

TEST(attention_gives_a_row_the_same_bits_whichever_rows_share_its_keys) {
  for (const cpu::Kernels* kernels : cpu::available_kernels()) {
    for (uint64_t seed = 200; seed < 240; ++seed) {
      Problem problem(seed, kDTypes[seed % 3]);
      AttentionParams& p = problem.p;
      p.phi = p.alibi_slopes = p.sinks = nullptr;
      problem.run(*kernels, 1);
      const Buffer together(*problem.out);
      const int group = p.query_heads / p.kv_heads;
      const char* q = static_cast<const char*>(p.q);
      p.query_heads = p.kv_heads;
      p.q_head_stride *= group;
      for (int i = 0; i < group; ++i) {
        p.q = q + i * p.q_head_stride / group * size_of(p.dtype);
        problem.run(*kernels, 1);
        for (int64_t row = 0; row < int64_t{p.batch} * p.query_len * p.kv_heads; ++row) {
          for (int d = 0; d < p.head_dim; ++d) {
            const double expected = together[(row * group + i) * p.head_dim + d];
            CHECK((*problem.out)[row * p.head_dim + d] == expected, kernels->name);
          }
        }
      }
    }
  }
}
