// The pool, and a whole model with random weights: any number of threads, rows and pieces gives the same bits.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>

#include "bucketed_models.h"
#include "check.h"
#include "sequences.h"

namespace specdec::test {
namespace {

bool equal(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

THREADED_TEST(pool_runs_every_part_once) {
  for (const int threads : {1, 2, 3, 5, 16}) {
    Pool pool(threads);
    for (int round = 0; round < (threads > 5 ? 110 : 300); ++round) {
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

// A thread that is held up in the first part of its share leaves the others to the rest: each thread waits there until all
// other parts have run.
THREADED_TEST(pool_does_not_wait_for_a_slow_thread) {
  for (const int threads : {2, 5, 16}) {
    Pool pool(threads);
    for (int slow = 0; slow < threads; ++slow) {
      const int parts = 3 * threads + 1, first = parts * slow / threads;
      std::atomic<int> others{0};
      std::atomic<bool> late{false};
      pool.run(parts, [&](int part, int) {
        if (part != first) {
          ++others;
          return;
        }
        const auto start = std::chrono::steady_clock::now();
        while (others < parts - 1 && !late) {
          std::this_thread::yield();
          late = std::chrono::steady_clock::now() - start > std::chrono::seconds(20);
        }
      });
      CHECK(!late, "the rest of a slow thread's share was left");
      CHECK(others == parts - 1, "parts");
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

// More threads than a few rows have chunks, and enough of them that each makes tiles of rows for itself.
THREADED_TEST(many_threads_give_the_bits_of_one) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < 140; ++i) tokens.push_back(i * 31 % 75);  // more than one chunk of attention
  const std::string isa = supported_isas().front();
  for (const auto& name : kSubjects) {
    Subject one = subject(name, isa, 1), many = subject(name, isa, 9);
    for (const double effort : {1.0, 0.4})
      for (const int piece : cases<int>({1, 5}, {5})) {
        const auto wanted = logits_of(*one.model, tokens, 35, effort, one.view.get());
        CHECK(equal(logits_of(*many.model, tokens, piece, effort, many.view.get()), wanted),
              many.name + " effort " + std::to_string(effort) + " pieces of " + std::to_string(piece));
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
    forward_one(m, {cache.get(), tokens.data() + first, rows, efforts.data()}, nullptr, logits.data());
  };
  CHECK(refused([&] { forward(model, 0, 1); }), "weights not loaded");
  CHECK(refused([&] { forward(*good, 1, 1); }), "token too large");
  CHECK(refused([&] { forward(*good, 2, 1); }), "token negative");
  CHECK(refused([&] { forward(*good, 3, 5); }), "no room");
  efforts[3] = 0;
  CHECK(refused([&] { forward(*good, 0, 1); }), "effort 0");
  CHECK(cache->length() == 0, "a refused pass changes nothing");
  CHECK(refused([&] { Model other(shape, "sparc", 1); }), "instruction set");
}

}  // namespace specdec::test
