// The end of a pass: logits of all tokens, or of a draft head's tokens. What is made of them is in choices.cpp.
#include <cstring>
#include <functional>
#include <limits>
#include <utility>

#include "forward.h"
#include "multiply.h"

namespace specdec {

// Scales and caps logits.
void Pass::finish_logits(float* logits, int64_t n) const {
  if (shape_.logit_scale != 1)
    for (int64_t i = 0; i < n; ++i) logits[i] *= shape_.logit_scale;
  if (shape_.logit_cap > 0) kernels_.element.cap(logits, shape_.logit_cap, n);
}

// Logits of the rows that ask for them, in the order of the batch.
void Pass::head(float* logits) {
  const int64_t hidden = shape_.hidden, stride = padded(hidden);
  std::vector<ShownRow>& shown = scratch_.shown;
  shown.clear();
  size_t hidden_rows = 0;  // that score all tokens and show only their choice
  for (const SequenceRows& given : batch_)
    if (given.choices != nullptr && given.head == nullptr) hidden_rows += static_cast<size_t>(given.shown_rows());
  scratch_.choice_logits.reserve(hidden_rows * static_cast<size_t>(shape_.vocab));
  float* hidden_logits = scratch_.choice_logits.data();
  for (const SequenceRows& given : batch_) {
    size_t j = 0;
    while (sequences_[j].given != &given) ++j;
    const Sequence& s = sequences_[j];
    const int count = given.shown_rows();
    for (int row = 0; row < count; ++row) {
      float* to = nullptr;
      if (given.choices == nullptr)
        to = std::exchange(logits, logits + shape_.vocab);
      else if (given.head == nullptr)
        to = std::exchange(hidden_logits, hidden_logits + shape_.vocab);
      shown.push_back({s.first + s.rows - count + row, given.efforts, given.head, to,
                       given.choices == nullptr ? nullptr : given.choices + row, given.likely,
                       given.likely == 0 ? nullptr : given.likeliest + row * given.likely});
    }
  }
  const auto rows = static_cast<int>(shown.size());
  if (rows == 0) return;
  // Rows that score all tokens come first; rows of one draft head are side by side.
  std::stable_sort(shown.begin(), shown.end(),
                   [](const ShownRow& a, const ShownRow& b) { return std::less<>()(a.head, b.head); });
  scratch_.head_efforts.clear();
  for (const ShownRow& row : shown) scratch_.head_efforts.push_back(row.efforts);
  each(rows, rows * hidden * 2, [&](int j, int) {
    kernels_.element.rms_norm(scratch_.x.data() + shown[static_cast<size_t>(j)].row * stride, model_.final_norm_,
                              shape_.norm_eps, hidden, scratch_.normed.data() + j * stride);
  });
  if (shape_.divided) divided_head(rows);
  int whole = shape_.divided ? rows : 0;
  while (whole < rows && shown[static_cast<size_t>(whole)].head == nullptr) ++whole;
  if (!shape_.divided) whole_head(whole);
  draft_heads(whole);
  choose_rows();
  uint64_t before = 0;
  for (SequenceRows& given : batch_) {
    const uint64_t after = before + static_cast<uint64_t>(given.shown_rows()), all = static_cast<uint64_t>(rows);
    given.bytes += shared_bytes_ * after / all - shared_bytes_ * before / all;
    before = after;
  }
}

// Logits of all tokens for the first `rows` rows that are shown.
void Pass::whole_head(int rows) {
  const int64_t stride = padded(shape_.hidden), wide = padded(shape_.vocab);
  const std::vector<ShownRow>& shown = scratch_.shown;
  if (rows > 0 && draft_ == nullptr && shown[0].logits + (rows - 1) * shape_.vocab == shown[static_cast<size_t>(rows) - 1].logits) {
    float* logits = shown[0].logits;
    multiply({scratch_.normed.data(), stride, rows, scratch_.head_efforts.data()},
             {{model_.head_matrix(), logits, shape_.vocab}}, false, [&](int, int row, int64_t from, int64_t to) {
               finish_logits(logits + row * shape_.vocab + from, to - from);
             });
    return;
  }
  scratch_.logits.reserve(static_cast<size_t>(std::min(rows, kDraftRows) * wide));
  for (int first = 0; first < rows; first += kDraftRows) {
    const int count = std::min(kDraftRows, rows - first);
    multiply({scratch_.normed.data() + first * stride, stride, count, scratch_.head_efforts.data() + first},
             {{model_.head_matrix(), scratch_.logits.data(), wide}}, false, [&](int, int row, int64_t from, int64_t to) {
               float* to_row = shown[static_cast<size_t>(first + row)].logits;
               std::memcpy(to_row + from, scratch_.logits.data() + row * wide + from, static_cast<size_t>(to - from) * 4);
               finish_logits(to_row + from, to - from);
             });
  }
}

// Logits of the tokens of draft heads, for the rows from `first` on that are shown.
void Pass::draft_heads(int first) {
  const std::vector<ShownRow>& shown = scratch_.shown;
  std::vector<const float*> x;
  for (size_t j = static_cast<size_t>(first); j < shown.size(); ++j)
    x.push_back(scratch_.normed.data() + static_cast<int64_t>(j) * padded(shape_.hidden));
  if (x.empty()) return;
  scratch_.head_input.set(x, shape_.hidden);
  const auto count = static_cast<int>(x.size());
  int64_t common = 0, own = 0, filled = 0;
  for (size_t j = static_cast<size_t>(first); j < shown.size(); ++j) {
    common = std::max(common, shown[j].head->common().count());
    own = std::max(own, shown[j].head->own().count());
    filled += shown[j].logits != nullptr;
  }
  own_column_ = padded(common);
  head_width_ = own_column_ + padded(own);
  scratch_.head_sums.reserve(static_cast<size_t>(count * head_width_));
  for (int j = 0; j < count; ++j) {
    float* sums = scratch_.head_sums.data() + j * head_width_;
    std::fill(sums + shown[static_cast<size_t>(first + j)].head->common().count(), sums + own_column_,
              -std::numeric_limits<float>::infinity());
  }
  if (filled > 0)
    each(count, filled * shape_.vocab * 4, [&](int j, int) {
      float* logits = shown[static_cast<size_t>(first + j)].logits;
      if (logits != nullptr) std::fill_n(logits, shape_.vocab, -std::numeric_limits<float>::infinity());
    });
  // Rows that several heads share are read once for all of them.
  const auto alike = [&](const HeadRows& (DraftHead::*part)() const, int64_t column) {
    for (int from = 0, to = 0; from < count; from = to) {
      const HeadRows& rows = (shown[static_cast<size_t>(first + from)].head->*part)();
      for (to = from + 1; to < count && &(shown[static_cast<size_t>(first + to)].head->*part)() == &rows;) ++to;
      score(rows, first, from, to - from, column);
    }
  };
  alike(&DraftHead::common, 0);
  alike(&DraftHead::own, own_column_);
}

// Logits of the tokens of `rows`, for `count` rows that are shown, from number first + from on: to columns of head_sums from
// `column` on, and to the logits of those that show them.
void Pass::score(const HeadRows& rows, int first, int from, int count, int64_t column) {
  const int64_t tokens = rows.count(), wide = head_width_;
  if (tokens == 0) return;
  HeadCall call = rows.call();
  scratch_.head_input.give(&call, from, count);
  call.y = scratch_.head_sums.data() + from * wide + column;
  call.y_stride = wide;
  constexpr int64_t kRows = 128;  // of a part
  const int64_t parts = (tokens + kRows - 1) / kRows;
  each(static_cast<int>(parts), tokens * shape_.hidden * count, [&](int part, int) {
    const int64_t start = part * kRows, end = std::min(start + kRows, tokens);
    kernels_.draft.head_rows(call, start, end);
    for (int j = 0; j < count; ++j) {
      float* sums = call.y + j * wide;
      finish_logits(sums + start, end - start);
      float* logits = scratch_.shown[static_cast<size_t>(first + from + j)].logits;
      for (int64_t o = start; logits != nullptr && o < end; ++o) logits[rows.token(o)] = sums[o];
    }
  });
  shared_bytes_ += rows.bytes_read();
}

}  // namespace specdec
