// The end of a pass: logits of all tokens, or of a draft head's tokens.
#include <cstring>
#include <functional>
#include <limits>

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
  for (const SequenceRows& given : batch_) {
    size_t j = 0;
    while (sequences_[j].given != &given) ++j;
    const Sequence& s = sequences_[j];
    for (int row = s.rows - given.shown_rows(); row < s.rows; ++row) {
      float* to = logits + static_cast<int64_t>(shown.size()) * shape_.vocab;
      shown.push_back({s.first + row, given.efforts, given.head, to});
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
  each(count, count * shape_.vocab * 4, [&](int j, int) {
    std::fill_n(shown[static_cast<size_t>(first + j)].logits, shape_.vocab, -std::numeric_limits<float>::infinity());
  });
  // Rows that several heads share are read once for all of them.
  const auto alike = [&](const HeadRows& (DraftHead::*part)() const) {
    for (int from = 0, to = 0; from < count; from = to) {
      const HeadRows& rows = (shown[static_cast<size_t>(first + from)].head->*part)();
      for (to = from + 1; to < count && &(shown[static_cast<size_t>(first + to)].head->*part)() == &rows;) ++to;
      score(rows, first, from, to - from);
    }
  };
  alike(&DraftHead::common);
  alike(&DraftHead::own);
}

// Logits of the tokens of `rows`, for `count` rows that are shown, from number first + from on.
void Pass::score(const HeadRows& rows, int first, int from, int count) {
  const int64_t tokens = rows.count(), wide = padded(tokens);
  if (tokens == 0) return;
  HeadCall call = rows.call();
  scratch_.head_input.give(&call, from, count);
  scratch_.head_sums.reserve(static_cast<size_t>(count * wide));
  call.y = scratch_.head_sums.data();
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
      for (int64_t o = start; o < end; ++o) logits[rows.token(o)] = sums[o];
    }
  });
  shared_bytes_ += rows.bytes_read();
}

}  // namespace specdec
