// Passes of several sequences: each gets the bits that it gets alone, and the bytes read add up.
#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

#include "check.h"
#include "sequences.h"

namespace specdec::test {
namespace {

// One sequence of a batch: its tokens, how it runs, and the logits of each row alone.
struct Told {
  std::vector<int32_t> tokens;
  double effort;
  int layers;
  std::vector<double> efforts;
  std::vector<float> wanted;
  std::unique_ptr<KvCache> cache;
};

std::vector<Told> sequences_of(const std::string& name, const std::string& isa, size_t count, size_t length) {
  Subject s = subject(name, isa, 1);
  std::vector<Told> all;
  for (size_t j = 0; j < count; ++j) {
    Told one;
    one.tokens = some_tokens(length + 13 * (j % 3), static_cast<uint32_t>(j));
    one.effort = j % 3 == 1 ? 0.4 : j % 3 == 2 ? 0.6 : 1.0;
    one.layers = j % 4 == 3 ? 1 : 0;
    one.efforts = s.efforts(one.effort);
    auto alone = s.model->new_cache(static_cast<int64_t>(one.tokens.size()));
    for (const int32_t token : one.tokens) {
      const auto logits = s.append(*alone, {token}, one.effort, one.layers);
      one.wanted.insert(one.wanted.end(), logits.begin(), logits.end());
    }
    one.cache = s.model->new_cache(1000);
    all.push_back(std::move(one));
  }
  return all;
}

// Runs all sequences to their ends in passes of random companies and pieces.
void check_company(Subject& s, std::vector<Told>& all, uint32_t seed, int most) {
  std::mt19937 engine(seed);
  for (;;) {
    std::vector<SequenceRows> batch;
    std::vector<size_t> which;
    int left = kMaxRows;
    for (size_t j = 0; j < all.size(); ++j) {
      Told& one = all[j];
      const auto rest = static_cast<int>(one.tokens.size()) - static_cast<int>(one.cache->length());
      if (rest == 0 || (engine() % 4 == 0 && j > 0)) continue;
      const int rows = std::min({rest, left, 1 + static_cast<int>(engine() % static_cast<uint32_t>(most))});
      if (rows == 0) break;
      SequenceRows given{one.cache.get(), one.tokens.data() + one.cache->length(), rows, one.efforts.data()};
      given.layers = one.layers;
      given.shown = static_cast<Shown>(engine() % 3);
      batch.push_back(given);
      which.push_back(j);
      left -= rows;
    }
    if (batch.empty()) {
      if (std::all_of(all.begin(), all.end(), [](const Told& one) { return one.cache->length() == static_cast<int64_t>(one.tokens.size()); })) return;
      continue;
    }
    std::shuffle(which.begin(), which.end(), engine);  // of equal kinds: order in the batch must not matter
    std::vector<SequenceRows> shuffled;
    for (const size_t j : which)
      for (const SequenceRows& given : batch)
        if (given.cache == all[j].cache.get()) shuffled.push_back(given);
    size_t rows = 0;
    for (const SequenceRows& given : shuffled) rows += static_cast<size_t>(given.shown_rows());
    std::vector<float> logits(std::max<size_t>(rows, 1) * s.vocab());
    std::vector<int64_t> held;
    for (const SequenceRows& given : shuffled) held.push_back(given.cache->length());
    s.model->forward(shuffled, s.view.get(), logits.data());
    const float* found = logits.data();
    for (size_t k = 0; k < shuffled.size(); ++k) {
      const SequenceRows& given = shuffled[k];
      const auto end = static_cast<size_t>(held[k] + given.rows), count = static_cast<size_t>(given.shown_rows());
      CHECK(same_bits(found, all[which[k]].wanted.data() + (end - count) * s.vocab(), static_cast<int64_t>(count * s.vocab())),
            s.name + ": sequence " + std::to_string(which[k]) + " of " + std::to_string(shuffled.size()) + " at " + std::to_string(held[k]));
      CHECK(given.bytes > 0 && given.cache->length() == static_cast<int64_t>(end), s.name + ": bytes and length");
      found += count * s.vocab();
    }
  }
}

}  // namespace

THREADED_TEST(a_batch_equals_its_parts) {
  for (const auto& isa : supported_isas())
    for (const auto& name : kSubjects) {
      if (kFewCases && isa != supported_isas()[0] && name != "dense") continue;
      Subject s = subject(name, isa, 3);
      auto all = sequences_of(name, isa, kFewCases ? 5 : 7, 20);
      check_company(s, all, 5, 9);
    }
}

THREADED_TEST(prompts_and_single_rows_share_a_pass) {
  for (const std::string name : {"dense", "quantised"}) {
    Subject s = subject(name, "", 2);
    auto all = sequences_of(name, "", 4, kFewCases ? 60 : 300);
    check_company(s, all, 6, kFewCases ? 40 : 150);
  }
}

THREADED_TEST(sixty_four_sequences_share_a_pass) {
  Subject s = subject("dense", "", 3);
  auto all = sequences_of("dense", "", kMaxSequences, 3);
  check_company(s, all, 7, 8);
}

TEST(states_are_those_of_a_pass_alone) {
  Subject s = subject("dense", "", 2);
  const auto tokens = some_tokens(12, 3);
  const auto efforts = s.efforts(1.0);
  const auto hidden = static_cast<size_t>(s.model->shape().hidden);
  auto states_of = [&](std::vector<std::pair<int, int>> parts) {  // rows and layers
    std::vector<std::unique_ptr<KvCache>> caches;
    std::vector<std::vector<float>> states;
    std::vector<SequenceRows> batch;
    for (const auto& [rows, layers] : parts) {
      caches.push_back(s.model->new_cache(12));
      states.emplace_back(static_cast<size_t>(rows * layers) * hidden);
      SequenceRows given{caches.back().get(), tokens.data(), rows, efforts.data()};
      given.layers = layers;
      given.shown = Shown::none;
      batch.push_back(given);
    }
    for (size_t j = 0; j < batch.size(); ++j) batch[j].states = states[j].data();
    s.model->forward(batch, nullptr, nullptr);
    return states;
  };
  const auto together = states_of({{5, 1}, {12, 2}, {1, 2}});
  CHECK(together[0] == states_of({{5, 1}})[0], "one layer");
  CHECK(together[1] == states_of({{12, 2}})[0], "many rows");
  CHECK(together[2] == states_of({{1, 2}})[0], "one row");
}

TEST(bytes_of_a_batch_add_up) {
  for (const std::string name : {"dense", "experts", "quantised", "nested"}) {
    Subject s = subject(name, "", 1);
    const auto tokens = some_tokens(8, 1);
    const auto efforts = s.efforts(1.0);
    std::vector<float> logits(16 * s.vocab());
    auto pass = [&](const std::vector<int>& counts) {
      std::vector<std::unique_ptr<KvCache>> caches;
      std::vector<SequenceRows> batch;
      for (const int rows : counts) {
        caches.push_back(s.model->new_cache(8));
        batch.push_back({caches.back().get(), tokens.data(), rows, efforts.data()});
      }
      s.model->forward(batch, s.view.get(), logits.data());
      std::vector<uint64_t> bytes;
      for (const SequenceRows& given : batch) bytes.push_back(given.bytes);
      return bytes;
    };
    const ModelShape& shape = s.model->shape();
    // Beside weights, which the same tokens read once, each row reads its embedding and its cache.
    auto own = [&](int rows) {
      const int64_t cached = 2 * shape.layer(0).kv_width() * s.model->new_cache(1)->shape().value_bytes();
      return static_cast<uint64_t>(rows * (shape.hidden * 2 + shape.layer_count() * cached));
    };
    const uint64_t weights = pass({4})[0] - own(4);
    const auto three = pass({4, 4, 4}), two = pass({1, 3});
    CHECK(three[0] + three[1] + three[2] == weights + 3 * own(4), name + ": the same rows three times");
    CHECK(three[0] - own(4) >= weights / 3 && three[0] - own(4) <= weights / 3 + 3, name + ": a third each");
    if (name != "experts") CHECK(two[0] + two[1] == weights + own(1) + own(3), name + ": other numbers of rows");
    if (name != "experts") CHECK(two[1] - own(3) <= weights / 4 * 3 + 4, name + ": by rows");
  }
}

TEST(a_refused_batch_changes_no_cache) {
  Subject s = subject("dense", "", 1);
  const auto tokens = some_tokens(8, 1);
  const std::vector<int32_t> bad = {3, 75}, parents = {-1, 0, 1}, late = {-1, 2, 1};
  const auto efforts = s.efforts(1.0), none = s.efforts(0.0);
  auto first = s.model->new_cache(8), second = s.model->new_cache(8);
  std::vector<float> logits(16 * s.vocab());
  auto refused = [&](SequenceRows other) {
    std::vector<SequenceRows> batch = {{first.get(), tokens.data(), 2, efforts.data()}, other};
    try {
      s.model->forward(batch, nullptr, logits.data());
    } catch (const std::invalid_argument&) {
      return first->length() == 0 && second->length() == 0 && first->bytes() == 0;
    }
    return false;
  };
  SequenceRows tree{second.get(), tokens.data(), 3, efforts.data()}, deep{second.get(), tokens.data(), 3, efforts.data()};
  tree.parents = late.data();
  deep.layers = 3;
  CHECK(refused({second.get(), bad.data(), 2, efforts.data()}), "token");
  CHECK(refused({second.get(), tokens.data(), 2, none.data()}), "effort");
  CHECK(refused({first.get(), tokens.data(), 2, efforts.data()}), "one cache twice");
  CHECK(refused(tree), "parents");
  CHECK(refused(deep), "layers");
  auto small = s.model->new_cache(1);
  CHECK(refused({small.get(), tokens.data(), 2, efforts.data()}), "no room");
  tree.parents = parents.data();
  std::vector<SequenceRows> none_at_all, good = {tree};
  bool empty = false;
  try {
    s.model->forward(none_at_all, nullptr, logits.data());
  } catch (const std::invalid_argument&) {
    empty = true;
  }
  CHECK(empty, "no sequence");
  s.model->forward(good, nullptr, logits.data());
  CHECK(second->length() == 3, "the same cache is taken afterwards");
}

}  // namespace specdec::test
