// What greedy decoding and draft heads need of logits: the largest, the shape of their distribution, the likeliest tokens.
//
// Logits are summed up in stretches that only their number decides, and the sums of stretches are joined in ascending order,
// so no bit depends on the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>

#include "forward.h"

namespace specdec {
namespace {

constexpr int64_t kStretches = 4;   // of a part of a region
constexpr int kKeptRows = 16;       // whose logits stay in memory for the next pass
constexpr double kNothing = -60.0;  // e^-60 of a weight is lost in it

int64_t stretches_of(int64_t count) { return (count + kLogitStretch - 1) / kLogitStretch; }

// Places of the `wanted` largest of a row's logits, of equal ones the first; none of them is NaN.
std::vector<int64_t> largest(const float* logits, int64_t count, const LogitSummary* summaries, int64_t wanted) {
  const int64_t stretches = stretches_of(count);
  wanted = std::min(wanted, count);
  // The n-th largest of the stretches' largest is at most the n-th largest logit.
  float least = -std::numeric_limits<float>::infinity();
  if (wanted <= stretches) {
    std::vector<float> order;
    for (int64_t s = 0; s < stretches; ++s) order.push_back(summaries[s].highest);
    const auto rank = order.begin() + (wanted - 1);
    std::nth_element(order.begin(), rank, order.end(), std::greater<>());
    least = *rank;
  }
  std::vector<int64_t> found;
  for (int64_t s = 0; s < stretches; ++s) {
    if (summaries[s].highest < least) continue;
    const int64_t end = std::min((s + 1) * kLogitStretch, count);
    for (int64_t place = s * kLogitStretch; place < end; ++place)
      if (logits[place] >= least) found.push_back(place);
  }
  const auto larger = [logits](int64_t a, int64_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
  std::nth_element(found.begin(), found.begin() + (wanted - 1), found.end(), larger);
  found.resize(static_cast<size_t>(wanted));
  return found;
}

// What the stretches of `count` logits are together; `token` is left out.
RowChoice join(const LogitSummary* summaries, int64_t count) {
  constexpr float kLeast = -std::numeric_limits<float>::infinity();
  float highest = kLeast, second = kLeast;
  for (int64_t s = 0; s < stretches_of(count); ++s) {
    const LogitSummary& one = summaries[s];
    if (std::isnan(one.highest)) {
      highest = one.highest;
      break;
    }
    second = one.highest > highest ? std::max(highest, one.second) : std::max(second, one.highest);
    highest = std::max(highest, one.highest);
  }
  RowChoice choice{0, highest, std::nanf(""), std::nan(""), std::nan("")};
  if (!std::isfinite(highest)) return choice;
  double weight = 0, moment = 0;
  for (int64_t s = 0; s < stretches_of(count); ++s) {
    const LogitSummary& one = summaries[s];
    const double below = static_cast<double>(one.highest) - highest;
    if (below < kNothing) continue;
    const double factor = std::exp(below);
    weight += factor * one.weight;
    moment += factor * (one.moment + below * one.weight);
  }
  choice.margin = highest - second;
  choice.entropy = std::max(0.0, std::log(weight) - moment / weight);
  choice.top_probability = 1.0 / weight;
  return choice;
}

}  // namespace

// Sums up the rows that show a choice or their likeliest tokens; the thread that ends a row's last part finishes the row.
void Pass::choose_rows() {
  std::vector<ScoredRow>& scored = scratch_.scored;
  scored.clear();
  int64_t stretches = 0, heads = 0;
  for (const ShownRow& shown : scratch_.shown) {
    const float* sums = scratch_.head_sums.data() + (shown.head == nullptr ? 0 : heads++) * head_width_;
    if (shown.choice == nullptr && shown.likely == 0) continue;
    const int64_t count = shown.head == nullptr ? shape_.vocab : own_column_ + shown.head->own().count();
    scored.push_back({&shown, shown.head == nullptr ? shown.logits : sums, count});
    stretches = std::max(stretches, stretches_of(count));
  }
  if (scored.empty()) return;
  const auto rows = static_cast<int64_t>(scored.size()), parts = (stretches + kStretches - 1) / kStretches;
  scratch_.summaries.resize(static_cast<size_t>(rows * stretches));
  if (scratch_.stretch_room < scored.size()) {
    scratch_.stretch_room = scored.size();
    scratch_.stretches_left.reset(new std::atomic<int>[scored.size()]);
  }
  for (size_t row = 0; row < scored.size(); ++row)
    scratch_.stretches_left[row].store(static_cast<int>(parts), std::memory_order_relaxed);
  constexpr int64_t kWork = 16;  // multiply-adds that a logit takes as long as
  each(static_cast<int>(rows * parts), rows * stretches * kLogitStretch * kWork, [&](int part, int) {
    const auto row = static_cast<size_t>(part / parts);
    const ScoredRow& one = scored[row];
    LogitSummary* summaries = scratch_.summaries.data() + static_cast<int64_t>(row) * stretches;
    const int64_t first = part % parts * kStretches, last = std::min(first + kStretches, stretches_of(one.count));
    for (int64_t s = first; s < last; ++s)
      kernels_.element.summarise(one.values + s * kLogitStretch, std::min(kLogitStretch, one.count - s * kLogitStretch),
                                 &summaries[s]);
    if (scratch_.stretches_left[row].fetch_sub(1, std::memory_order_acq_rel) == 1) choose_row(one, summaries);
  });
  if (scratch_.choice_logits.size() > static_cast<size_t>(kKeptRows * shape_.vocab)) scratch_.choice_logits = {};
}

void Pass::choose_row(const ScoredRow& row, const LogitSummary* summaries) {
  const ShownRow& shown = *row.shown;
  RowChoice choice = join(summaries, row.count);
  if (shown.choice != nullptr) {
    // A head's tokens are in no order: of those with the largest logit the lowest is looked for.
    choice.token = std::numeric_limits<int32_t>::max();
    const bool is_nan = std::isnan(choice.highest);
    for (int64_t s = 0; s < stretches_of(row.count); ++s) {
      if (is_nan ? !std::isnan(summaries[s].highest) : summaries[s].highest != choice.highest) continue;
      const int64_t end = std::min((s + 1) * kLogitStretch, row.count);
      for (int64_t place = s * kLogitStretch; place < end; ++place)
        if (is_nan ? std::isnan(row.values[place]) : row.values[place] == choice.highest) {
          const int32_t token = token_of(row, place);
          if (token >= 0) choice.token = std::min(choice.token, token);
        }
    }
    *shown.choice = choice;
  }
  if (shown.likely == 0) return;
  std::fill_n(shown.likeliest, shown.likely, -1);
  if (std::isnan(choice.highest)) return;
  const std::vector<int64_t> places = largest(row.values, row.count, summaries, shown.likely);
  for (size_t j = 0; j < places.size(); ++j) shown.likeliest[j] = token_of(row, places[j]);
}

// The token of a row's logit; -1 for what fills up the columns of a draft head.
int32_t Pass::token_of(const ScoredRow& row, int64_t place) const {
  if (row.shown->head == nullptr) return static_cast<int32_t>(place);
  const HeadRows &common = row.shown->head->common(), &own = row.shown->head->own();
  if (place < common.count()) return common.token(place);
  return place < own_column_ ? -1 : own.token(place - own_column_);
}

}  // namespace specdec
