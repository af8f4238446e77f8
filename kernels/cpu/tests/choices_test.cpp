// Logits summed up, against float64; and choices of rows, which must not depend on threads, company or what else is shown.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "sequences.h"

namespace specdec::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void check_summary(const KernelTable& table, const std::vector<float>& logits, const std::string& name) {
  LogitSummary found{};
  table.element.summarise(logits.data(), static_cast<int64_t>(logits.size()), &found);
  std::vector<float> sorted = logits;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  const float second = sorted.size() > 1 ? sorted[1] : -kInfinity;
  CHECK(found.highest == sorted[0] && found.second == second, name + ": the two largest");
  if (std::isinf(sorted[0])) return;
  double weight = 0, moment = 0, size = 0;
  for (const float logit : logits) {
    const double below = std::max(static_cast<double>(logit) - sorted[0], -87.0);
    weight += std::exp(below);
    moment += std::exp(below) * below;
    size += std::exp(below) * (1 - below);
  }
  // A few units in the last place of each term, and a rounding for each sum.
  CHECK(std::fabs(found.weight - weight) <= 1e-5 * weight, name + ": the sum of weights");
  CHECK(std::fabs(found.moment - moment) <= 1e-5 * size, name + ": the moment");
}

// Choices and likeliest tokens of a chain, by passes of `piece` rows.
struct Shows {
  std::vector<RowChoice> choices;
  std::vector<int32_t> likeliest;
};

Shows shows_of(Subject& s, const std::vector<int32_t>& tokens, int piece, int likely, DraftHead* head = nullptr) {
  auto cache = s.model->new_cache(static_cast<int64_t>(tokens.size()));
  const auto efforts = s.efforts(1.0);
  Shows found{std::vector<RowChoice>(tokens.size()), std::vector<int32_t>(tokens.size() * static_cast<size_t>(likely))};
  for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(piece)) {
    const auto rows = static_cast<int>(std::min(tokens.size() - first, static_cast<size_t>(piece)));
    SequenceRows given{cache.get(), tokens.data() + first, rows, efforts.data()};
    given.choices = found.choices.data() + first;
    given.likely = likely;
    given.likeliest = found.likeliest.data() + first * static_cast<size_t>(likely);
    given.head = head;
    forward_one(*s.model, given, s.view.get(), nullptr);
  }
  for (size_t row = 0; row < tokens.size(); ++row)
    std::sort(found.likeliest.begin() + static_cast<int64_t>(row) * likely, found.likeliest.begin() + static_cast<int64_t>(row + 1) * likely);
  return found;
}

bool same(const RowChoice& a, const RowChoice& b) {
  return a.token == b.token && a.highest == b.highest && a.margin == b.margin && a.entropy == b.entropy &&
         a.top_probability == b.top_probability;
}

Subject wide_subject(int threads, bool int4) {
  ModelShape shape = small_shape(false, {16, {4, 4, 4, 4}});
  shape.vocab = 3 * static_cast<int>(kLogitStretch) * 4 + 77;
  Subject s{"wide", random_model(shape, "", threads), nullptr};
  if (int4) s.view = built<Int4View>(*s.model);
  return s;
}

// What a choice must be, by the logits.
void check_choice(const RowChoice& choice, const std::vector<int32_t>& tokens, const float* logits, const std::string& name) {
  int32_t top = tokens[0];
  for (const int32_t token : tokens)
    if (logits[token] > logits[top] || (logits[token] == logits[top] && token < top)) top = token;
  double weight = 0, moment = 0;
  float second = -kInfinity;
  for (const int32_t token : tokens) {
    const double below = static_cast<double>(logits[token]) - logits[top];
    weight += std::exp(below);
    moment += std::exp(below) * below;
    if (token != top) second = std::max(second, logits[token]);
  }
  CHECK(choice.token == top && choice.highest == logits[top] && choice.margin == logits[top] - second, name + ": the token");
  CHECK(std::fabs(choice.entropy - (std::log(weight) - moment / weight)) < 1e-4, name + ": entropy");
  CHECK(std::fabs(choice.top_probability * weight - 1) < 1e-5, name + ": probability");
}

}  // namespace

TEST(logits_are_summed_up_as_in_float64) {
  for (const auto* table : tables())
    for (const int64_t n : {1, 2, 7, 33, 64, 100, 1023, 1024}) {
      const std::string name = std::string(table->name) + " of " + std::to_string(n);
      auto logits = random_floats(static_cast<size_t>(n), static_cast<uint32_t>(n), 12.0F);
      check_summary(*table, logits, name);
      logits[static_cast<size_t>(n / 2)] = 40.0F;
      logits[static_cast<size_t>(n) - 1] = 40.0F;  // two equal ones
      logits[0] = -kInfinity;
      check_summary(*table, logits, name + " with infinities");
      std::fill(logits.begin(), logits.end(), -kInfinity);
      check_summary(*table, logits, name + " of nothing");
      logits[static_cast<size_t>(n / 3)] = std::nanf("");
      LogitSummary found{};
      table->element.summarise(logits.data(), n, &found);
      CHECK(std::isnan(found.highest), name + ": NaN");
    }
}

THREADED_TEST(choices_are_those_of_logits_with_any_threads_and_rows) {
  const auto tokens = some_tokens(6, 4);
  for (const bool int4 : {false, true}) {
    Subject s = wide_subject(1, int4);
    const auto logits = s.append(*s.model->new_cache(6), tokens, 1.0);
    const Shows one = shows_of(s, tokens, 1, 5);
    std::vector<int32_t> all(s.vocab());
    for (size_t token = 0; token < all.size(); ++token) all[token] = static_cast<int32_t>(token);
    for (size_t row = 0; row < tokens.size(); ++row) {
      const float* own = logits.data() + row * s.vocab();
      check_choice(one.choices[row], all, own, s.name);
      std::vector<int32_t> order = all;
      std::sort(order.begin(), order.end(), [own](int32_t a, int32_t b) { return own[a] > own[b]; });
      std::sort(order.begin(), order.begin() + 5);
      CHECK(std::equal(order.begin(), order.begin() + 5, one.likeliest.begin() + static_cast<int64_t>(row) * 5), s.name + ": likely tokens");
    }
    for (const int threads : {1, 2, 3}) {
      Subject other = wide_subject(threads, int4);
      for (const int piece : {2, 6}) {
        const Shows found = shows_of(other, tokens, piece, 5);
        CHECK(found.likeliest == one.likeliest, s.name + ": likely tokens by threads");
        for (size_t row = 0; row < tokens.size(); ++row)
          CHECK(same(found.choices[row], one.choices[row]), s.name + ": choices by threads");
      }
    }
  }
}

THREADED_TEST(a_draft_head_chooses_among_its_tokens) {
  Subject s = wide_subject(3, true);
  const auto tokens = some_tokens(5, 9);
  std::vector<int32_t> listed, added;
  for (int32_t token = 5000; token > 400; token -= 2) listed.push_back(token);
  for (int32_t token = 1; token < 3000; token += 2) added.push_back(token);
  auto common = std::make_shared<HeadRows>(s.model->shape().vocab, s.model->shape().hidden, static_cast<int64_t>(listed.size()));
  common->add(*s.model, listed.data(), static_cast<int64_t>(listed.size()), nullptr);
  DraftHead head(*s.model, common, 4096);
  head.add(added.data(), static_cast<int64_t>(added.size()));
  std::vector<int32_t> all = listed;
  all.insert(all.end(), added.begin(), added.end());
  auto cache = s.model->new_cache(5);
  const auto efforts = s.efforts(1.0);
  std::vector<float> logits(tokens.size() * s.vocab());
  SequenceRows given{cache.get(), tokens.data(), 5, efforts.data()};
  given.head = &head;
  forward_one(*s.model, given, s.view.get(), logits.data());
  const Shows found = shows_of(s, tokens, 2, 3, &head);
  for (size_t row = 0; row < tokens.size(); ++row) {
    const float* own = logits.data() + row * s.vocab();
    check_choice(found.choices[row], all, own, "head");
    for (size_t j = 0; j < 3; ++j) CHECK(own[found.likeliest[row * 3 + j]] > -kInfinity, "likely tokens of a head");
  }
}

}  // namespace specdec::test
