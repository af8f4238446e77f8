// Trees of rows, and what becomes of a cache afterwards: every row has the bits of the chain that its path is.
#include <algorithm>

#include "check.h"
#include "sequences.h"

namespace specdec::test {
namespace {

std::vector<int32_t> random_tree(int rows, std::mt19937& engine) {
  std::vector<int32_t> parents(static_cast<size_t>(rows));
  for (int row = 0; row < rows; ++row) {
    // Mostly deep, with branches and several roots.
    const auto kind = engine() % 4;
    parents[static_cast<size_t>(row)] = kind < 2 ? row - 1 : static_cast<int32_t>(engine() % static_cast<uint32_t>(row + 1)) - 1;
  }
  return parents;
}

std::vector<int64_t> path_to(const std::vector<int32_t>& parents, int row) {
  std::vector<int64_t> path;
  for (; row >= 0; row = parents[static_cast<size_t>(row)]) path.insert(path.begin(), row);
  return path;
}

std::vector<int32_t> tokens_at(const std::vector<int32_t>& tokens, const std::vector<int64_t>& rows) {
  std::vector<int32_t> found;
  for (const int64_t row : rows) found.push_back(tokens[static_cast<size_t>(row)]);
  return found;
}

bool last_row_is(const std::vector<float>& chain, const float* row, size_t vocab) {
  return same_bits(chain.data() + chain.size() - vocab, row, static_cast<int64_t>(vocab));
}

// A tree of `rows` after `before` tokens, beside another sequence; then a path is kept and goes on.
// Chains run in another model of the same weights, with one thread.
void check_tree(Subject& s, Subject& alone, int before, int rows, double effort, uint32_t seed) {
  std::mt19937 engine(seed);
  const std::string where = s.name + " tree of " + std::to_string(rows) + " after " + std::to_string(before);
  const auto prompt = some_tokens(static_cast<size_t>(before), seed), tokens = some_tokens(static_cast<size_t>(rows), seed + 1);
  const auto parents = random_tree(rows, engine);
  const auto efforts = s.efforts(effort);
  auto cache = s.model->new_cache(600), beside = s.model->new_cache(600);
  if (before > 0) alone.append(*cache, prompt, effort);
  const auto start = cache->fork(before, 600);
  std::vector<float> logits((static_cast<size_t>(rows) + 3) * s.vocab());
  SequenceRows tree{cache.get(), tokens.data(), rows, efforts.data()};
  tree.parents = parents.data();
  std::vector<SequenceRows> batch = {{beside.get(), tokens.data(), 1, efforts.data()}, tree};
  s.model->forward(batch, s.view.get(), logits.data());
  CHECK(cache->length() == before + rows, where + ": length");
  for (int row = 0; row < rows; row += 1 + rows / 12) {
    const auto chain = alone.append(*start->fork(before, 600), tokens_at(tokens, path_to(parents, row)), effort);
    CHECK(last_row_is(chain, logits.data() + static_cast<size_t>(row + 1) * s.vocab(), s.vocab()), where + " row " + std::to_string(row));
  }
  const auto path = path_to(parents, static_cast<int>(engine() % static_cast<uint32_t>(rows)));
  const auto on_path = tokens_at(tokens, path), more = some_tokens(5, seed + 2);
  cache->keep(before, path);
  CHECK(cache->length() == before + static_cast<int64_t>(path.size()), where + ": kept length");
  auto plain = start->fork(before, 600);
  alone.append(*plain, on_path, effort);
  CHECK(alone.append(*cache, more, effort) == alone.append(*plain, more, effort), where + ": after keep");
}

}  // namespace

THREADED_TEST(a_row_of_a_tree_has_the_bits_of_its_path) {
  for (const auto& isa : supported_isas())
    for (const auto& name : kSubjects) {
      if (kFewCases && isa != supported_isas()[0] && name != "dense") continue;
      Subject s = subject(name, isa, 3), alone = subject(name, isa, 1);
      uint32_t seed = 0;
      // Trees that begin, end or lie at the borders of chunks (128); the models have a window of 9 in one layer.
      for (const int before : cases<int>({0, 120, 128}, {120}))
        for (const int rows : cases<int>({1, 5, kMaxTreeRows}, {17}))
          ++seed, check_tree(s, alone, before, rows, seed % 2 == 0 ? 0.4 : 1.0, seed);
    }
}

TEST(a_tree_that_is_a_chain_has_the_bits_of_one) {
  Subject s = subject("dense", "", 1);
  const auto tokens = some_tokens(6, 1);
  const std::vector<int32_t> parents = {-1, 0, 1, 2, 3, 4};
  const auto efforts = s.efforts(1.0);
  auto cache = s.model->new_cache(6), other = s.model->new_cache(6);
  std::vector<float> logits(6 * s.vocab());
  SequenceRows tree{cache.get(), tokens.data(), 6, efforts.data()};
  tree.parents = parents.data();
  forward_one(*s.model, tree, nullptr, logits.data());
  CHECK(logits == s.append(*other, tokens, 1.0), "chain");
}

TEST(heads_of_any_size_and_number_go_through_a_tree) {
  for (const auto& isa : supported_isas())
    for (const auto& [heads, size] : std::vector<std::pair<int, int>>{{2, 2}, {6, 34}, {32, 16}, {2, 128}}) {
      ModelShape shape = two_layers(75, 40, 72, false);
      set_heads(shape, heads, size);
      Subject s{"heads " + std::to_string(heads) + " of " + std::to_string(size) + " " + isa, random_model(shape, isa, 2), nullptr};
      check_tree(s, s, 121, 13, 1.0, 3);
    }
}

THREADED_TEST(forks_share_blocks_and_never_disturb_each_other) {
  Subject s = subject("dense", "", 2);
  const auto tokens = some_tokens(300, 1), more = some_tokens(200, 2);
  auto fresh = [&](int length) {
    auto cache = s.model->new_cache(600);
    s.append(*cache, {tokens.begin(), tokens.begin() + length}, 1.0);
    return s.append(*cache, more, 1.0);
  };
  for (const int length : cases<int>({1, 100, 128, 200, 256, 300}, {100, 256})) {
    const auto wanted = fresh(length), whole = fresh(300);
    auto cache = s.model->new_cache(600);
    s.append(*cache, tokens, 1.0);
    const auto fork = cache->fork(length, 500), second = fork->fork(length, 500);
    cache->trim(length);  // what comes then is written into blocks that the forks still hold
    CHECK(s.append(*cache, more, 1.0) == wanted, "the cache itself at " + std::to_string(length));
    CHECK(s.append(*fork, more, 1.0) == wanted, "a fork at " + std::to_string(length));
    cache->trim(length);
    s.append(*cache, some_tokens(50, 9), 1.0);
    CHECK(s.append(*second, more, 1.0) == wanted, "a fork of a fork at " + std::to_string(length));
    cache.reset();
    const auto late = fork->fork(length, 500);
    CHECK(s.append(*late, more, 1.0) == wanted, "a late fork at " + std::to_string(length));
    late->trim(length);
    if (length < 300) s.append(*late, {tokens.begin() + length, tokens.end()}, 1.0);
    CHECK(s.append(*late, more, 1.0) == whole, "another text at " + std::to_string(length));
  }
}

TEST(caches_grow_in_blocks) {
  Subject s = subject("dense", "", 1);
  auto cache = s.model->new_cache(int64_t{1} << 40);
  CHECK(cache->bytes() == 0, "empty");
  s.append(*cache, {1}, 1.0);
  const uint64_t block = cache->bytes();
  CHECK(block > 0, "one");
  s.append(*cache, some_tokens(127, 1), 1.0);
  CHECK(cache->bytes() == block, "a full block");
  s.append(*cache, some_tokens(300, 1), 1.0);
  CHECK(cache->bytes() == 4 * block, "four");
  cache->trim(100);
  CHECK(cache->bytes() == 2 * block, "one to spare");
  CHECK(cache->fork(0, 5)->bytes() == 0, "an empty fork");
  CHECK(cache->fork(100, 100)->bytes() == block, "a fork of part of a block");
}

}  // namespace specdec::test
