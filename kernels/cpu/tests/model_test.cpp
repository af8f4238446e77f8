// The pool, and a whole model with random weights: any number of threads, rows and pieces gives the same bits.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "model.h"
#include "models.h"

namespace specdec::test {
namespace {

// A matrix in buckets and tiers, as the store holds it; tiers are shared out at random, which the packing does not
// mind.
struct Bucketed {
  std::vector<std::vector<uint16_t>> values;
  std::vector<std::vector<uint8_t>> masks;
  std::vector<float> scores;

  Bucketed(int64_t out, int64_t in, const Layout& layout, Dtype dtype, uint32_t seed) {
    const int64_t buckets = (out + layout.bucket_size - 1) / layout.bucket_size;
    const auto tiers = static_cast<size_t>(layout.tiers());
    std::mt19937 engine(seed);
    values.resize(tiers);
    masks.resize(tiers - 1);
    for (size_t k = 0; k < tiers; ++k)
      values[k] =
          random_bits(static_cast<size_t>(in * buckets * layout.tier_sizes[k]), dtype, seed + static_cast<uint32_t>(k));
    for (int64_t n = 0; n < in * buckets; ++n) {
      std::vector<int> order(static_cast<size_t>(layout.bucket_size));
      for (size_t j = 0; j < order.size(); ++j) order[j] = static_cast<int>(j);
      std::shuffle(order.begin(), order.end(), engine);
      size_t at = 0;
      for (size_t k = 0; k + 1 < tiers; ++k) {
        uint64_t mask = 0;
        for (int j = 0; j < layout.tier_sizes[k]; ++j) mask |= uint64_t{1} << order[at++];
        for (int byte = 0; byte < layout.bucket_size / 8; ++byte)
          masks[k].push_back(static_cast<uint8_t>(mask >> (8 * byte)));
      }
    }
    for (int64_t i = 0; i < in; ++i)
      for (size_t k = 0; k < tiers; ++k) scores.push_back(1.0F / static_cast<float>(1 + k + engine() % 3));
  }

  // Of the first tiers alone, unless `loaded` is 0.
  BucketSource source(int loaded = 0) const {
    BucketSource s;
    for (const auto& v : values) s.values.push_back(v.data());
    for (const auto& m : masks) s.masks.push_back(m.data());
    s.scores = scores.data();
    if (loaded != 0) s.values.resize(static_cast<size_t>(loaded));
    if (loaded != 0) s.masks.resize(std::min(static_cast<size_t>(loaded), s.masks.size()));
    return s;
  }
};

ModelShape small_shape(bool experts, Layout layout) {
  ModelShape s = two_layers(75, 40, 72, experts);
  set_heads(s, 6, 10);
  s.qkv_bias = true;
  s.qk_norm = true;
  s.dtype = experts ? Dtype::bfloat16 : Dtype::float16;
  s.layout = std::move(layout);
  return s;
}

// What becomes of the last tiers of matrices, of which the number goes around.
enum class LastTiers { kept, zeros, left_out };

std::unique_ptr<Model> random_model(const ModelShape& shape, const std::string& isa, int threads,
                                    LastTiers last = LastTiers::kept) {
  auto model = std::make_unique<Model>(shape, isa, threads);
  auto loaded = [&](int j) { return last == LastTiers::kept ? shape.layout.tiers() : 1 + j % shape.layout.tiers(); };
  for (int j = 0; j < shape.matrix_count() && last == LastTiers::left_out; ++j) model->set_tiers(j, loaded(j));
  for (int j = 0; j < shape.matrix_count(); ++j) {
    const auto& matrix = model->matrix(j);
    Bucketed bucketed(matrix.out, matrix.in, shape.layout, shape.dtype, static_cast<uint32_t>(j));
    for (auto k = static_cast<size_t>(loaded(j)); k < bucketed.values.size(); ++k)
      std::fill(bucketed.values[k].begin(), bucketed.values[k].end(), uint16_t{0});
    const BucketSource source = bucketed.source(last == LastTiers::left_out ? loaded(j) : 0);
    CHECK(model->load_values(j, source, 0, matrix.in).empty(), "packing");
    model->load_masks(j, bucketed.source());
  }
  load_vectors_and_routers(*model);
  if (!shape.tie_embeddings)
    model->load_embedding(random_bits(static_cast<size_t>(shape.vocab * shape.hidden), shape.dtype, 3).data());
  return model;
}

bool equal(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

THREADED_TEST(pool_runs_every_part_once) {
  for (const int threads : {1, 2, 3, 5}) {
    Pool pool(threads);
    for (int round = 0; round < 300; ++round) {
      const int parts = round % 37;
      std::vector<std::atomic<int>> counts(static_cast<size_t>(parts));
      std::atomic<int> bad_threads{0};
      pool.run(parts, [&](int part, int thread) {
        ++counts[static_cast<size_t>(part)];
        if (thread < 0 || thread >= threads) ++bad_threads;
      });
      for (const auto& count : counts) CHECK(count == 1, "a part ran " + std::to_string(count) + " times");
      CHECK(bad_threads == 0, "thread number");
      if (round % 100 == 99) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // long enough to fall asleep
    }
  }
}

THREADED_TEST(model_gives_the_same_bits_in_any_company) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < 150; ++i) tokens.push_back(i * 31 % 75);  // more than one chunk of attention
  const std::vector<Layout> layouts = {{16, {4, 4, 4, 4}}, {24, {8, 16}}, {64, {8, 8, 16, 32}}, {8, {8}}};
  for (const auto& isa : supported_isas())
    for (size_t j = 0; j < layouts.size(); ++j) {
      const ModelShape shape = small_shape(j % 2 == 1, layouts[j]);
      const auto one = random_model(shape, isa, 1), two = random_model(shape, isa, 3);
      for (const double effort : {1.0, 0.4}) {
        const auto wanted = logits_of(*one, tokens, 1, effort);
        bool finite = true;
        for (const float value : wanted) finite &= std::isfinite(value);
        CHECK(finite, isa + ": logits are finite");
        for (const int piece : cases<int>({1, 2, 5, 13, 40, 150}, {5, 13, 150}))
          CHECK(equal(logits_of(*two, tokens, piece, effort), wanted), isa + " layout " + std::to_string(j) +
                                                                           " effort " + std::to_string(effort) +
                                                                           " pieces of " + std::to_string(piece));
      }
    }
}

THREADED_TEST(tiers_that_are_left_out_are_zeros_that_take_no_memory) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < 50; ++i) tokens.push_back(i * 31 % 75);
  const std::vector<Layout> layouts = {{16, {4, 4, 4, 4}}, {32, {5, 3, 24}}, {8, {2, 6}}, {16, {7, 9}}, {24, {8, 16}}};
  for (const auto& isa : supported_isas())
    for (size_t j = 0; j < layouts.size(); ++j) {
      const std::string where = isa + " layout " + std::to_string(j);
      const ModelShape shape = small_shape(j % 2 == 1, layouts[j]);
      const auto zeros = random_model(shape, isa, 1, LastTiers::zeros),
                 without = random_model(shape, isa, 3, LastTiers::left_out);
      CHECK((without->bytes() < zeros->bytes()) == (kPanel % layouts[j].bucket_size == 0), where + ": bytes");
      for (const double effort : {1.0, 0.4})
        for (const int piece : cases<int>({1, 2, 5, 13, 50}, {1, 5, 50}))
          CHECK(equal(logits_of(*without, tokens, piece, effort), logits_of(*zeros, tokens, piece, effort)),
                where + " effort " + std::to_string(effort) + " pieces of " + std::to_string(piece));
      // Drafts are made of the same weights.
      uint16_t one[kPanel], other[kPanel];
      bool same = true;
      for (int m = 0; m < shape.matrix_count(); ++m)
        for (int64_t n = 0; n < zeros->matrix(m).panel_count() * zeros->matrix(m).in; ++n) {
          const int64_t panel = n / zeros->matrix(m).in, input = n % zeros->matrix(m).in;
          same &= std::memcmp(zeros->matrix(m).whole_line(panel, input, one),
                              without->matrix(m).whole_line(panel, input, other), sizeof one) == 0;
        }
      CHECK(same, where + ": lines");
    }
}

THREADED_TEST(two_models_run_at_once) {
  const ModelShape shape = small_shape(false, {16, {4, 4, 4, 4}});
  const auto first = random_model(shape, "", 2), second = random_model(shape, "", 2);
  std::vector<int32_t> tokens;
  for (int i = 0; i < 30; ++i) tokens.push_back(i);
  const auto wanted = logits_of(*first, tokens, 4, 0.7);
  std::vector<std::vector<float>> found(4);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < found.size(); ++t)
    threads.emplace_back([&, t] { found[t] = logits_of(t % 2 == 0 ? *first : *second, tokens, 3, 0.7); });
  for (auto& thread : threads) thread.join();
  for (const auto& logits : found) CHECK(equal(logits, wanted), "logits beside another thread's");
}

TEST(bad_weights_and_calls_are_refused) {
  const ModelShape shape = small_shape(false, {16, {4, 12}});
  Model model(shape, "", 2);
  const auto& matrix = model.matrix(0);
  Bucketed bad(matrix.out, matrix.in, shape.layout, shape.dtype, 1);
  bad.values[1][5] = 0x7C00;
  CHECK(model.load_values(0, bad.source(), 0, matrix.in).find("infinite") != std::string::npos, "infinity");
  Bucketed twisted(matrix.out, matrix.in, shape.layout, shape.dtype, 1);
  twisted.masks[0][0] ^= 1;
  CHECK(model.load_values(0, twisted.source(), 0, matrix.in).find("masks") != std::string::npos, "masks");
  Bucketed shared(matrix.out, matrix.in, shape.layout, shape.dtype, 1);
  Model part(shape, "", 2);
  part.set_tiers(0, 1);
  shared.masks[0][0] ^= 1;
  CHECK(part.load_values(0, shared.source(1), 0, matrix.in).find("masks") != std::string::npos, "masks of a part");
  auto refused = [](auto&& call) {
    try {
      call();
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  CHECK(refused([&] { part.set_tiers(1, 1); }), "tiers after weights");
  CHECK(refused([&] { Model(shape, "", 1).set_tiers(0, 0); }), "no tier");
  CHECK(refused([&] { Model(shape, "", 1).set_tiers(0, 3); }), "tiers that are not there");
  const auto good = random_model(shape, "", 1);
  auto cache = good->new_cache(4);
  std::vector<double> efforts(static_cast<size_t>(shape.matrix_count()), 1.0);
  std::vector<float> logits(static_cast<size_t>(shape.vocab) * 8);
  const std::vector<int32_t> tokens = {1, 75, -1, 3, 4, 5, 6, 7};
  auto forward = [&](Model& m, size_t first, int rows) {
    m.forward(tokens.data() + first, rows, *cache, nullptr, efforts.data(), false, logits.data());
  };
  CHECK(refused([&] { forward(model, 0, 1); }), "weights not loaded");
  CHECK(refused([&] { forward(*good, 1, 1); }), "token too large");
  CHECK(refused([&] { forward(*good, 2, 1); }), "token negative");
  CHECK(refused([&] { forward(*good, 3, 5); }), "no room");
  efforts[3] = 0;
  CHECK(refused([&] { forward(*good, 0, 1); }), "effort 0");
  CHECK(cache->length == 0, "a refused pass changes nothing");
  CHECK(refused([&] { Model other(shape, "sparc", 1); }), "instruction set");
}

}  // namespace specdec::test
