#include "draft_head.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "model.h"

namespace specdec {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kWorthSharing = 8;  // rows that are made by all threads

int64_t round_up(int64_t n) { return (n + kLine - 1) / kLine * kLine; }

}  // namespace

HeadRows::HeadRows(int64_t vocab, int64_t inputs, int64_t most)
    : inputs_(inputs),
      stride_(round_up(inputs)),
      most_(most),
      known_(static_cast<size_t>(vocab)),
      codes_(static_cast<size_t>(most * stride_), Pages::small),
      scales_(static_cast<size_t>(most), Pages::small) {}

void HeadRows::add(Model& model, const int32_t* tokens, int64_t count, const HeadRows* elsewhere) {
  std::vector<std::pair<int64_t, int32_t>> wanted;
  for (int64_t j = 0; j < count; ++j) {
    const int32_t token = tokens[j];
    if (has(token) || (elsewhere != nullptr && elsewhere->has(token))) continue;
    int64_t row = this->count();
    if (row < most_) {
      tokens_.push_back(token);
    } else {
      row = oldest_;
      oldest_ = (oldest_ + 1) % most_;
      known_[static_cast<size_t>(tokens_[static_cast<size_t>(row)])] = false;
      tokens_[static_cast<size_t>(row)] = token;
    }
    known_[static_cast<size_t>(token)] = true;
    wanted.emplace_back(row, token);
  }
  // More tokens than room: the last to get a row has it.
  wanted.erase(std::remove_if(wanted.begin(), wanted.end(), [this](const auto& one) { return token(one.first) != one.second; }),
               wanted.end());
  const auto rows = static_cast<int64_t>(wanted.size());
  const int64_t parts = rows < kWorthSharing ? std::min<int64_t>(rows, 1) : 4 * model.pool().threads();
  model.pool().run(static_cast<int>(parts), [&](int part, int) {
    std::vector<float> weights(static_cast<size_t>(stride_));
    for (int64_t j = rows * part / parts; j < rows * (part + 1) / parts; ++j)
      set(model, wanted[static_cast<size_t>(j)].first, wanted[static_cast<size_t>(j)].second, weights.data());
  });
}

void HeadRows::set(Model& model, int64_t row, int32_t token, float* weights) {
  model.logits_row(token, weights);
  float peak = 0.0F;
  for (int64_t i = 0; i < inputs_; ++i) peak = std::max(peak, std::fabs(weights[i]));
  const float scale = peak / 127.0F;
  int8_t* codes = codes_.data() + row * stride_;
  for (int64_t i = 0; i < inputs_; ++i)
    codes[i] = scale > 0.0F ? static_cast<int8_t>(std::lrintf(std::min(std::max(weights[i] / scale, -127.0F), 127.0F))) : int8_t{0};
  scales_[static_cast<size_t>(row)] = scale;
}

DraftHead::DraftHead(Model& model, std::shared_ptr<const HeadRows> common, int64_t most)
    : model_(model), common_(std::move(common)), own_(model.shape().vocab, model.shape().hidden, most) {}

void HeadInput::set(const std::vector<const float*>& x, int64_t inputs) {
  stride_ = round_up(inputs);
  whole_.reserve(x.size() * static_cast<size_t>(stride_));
  steps_.clear();
  for (const float* row : x) {
    int16_t* to = whole_.data() + static_cast<int64_t>(steps_.size()) * stride_;
    std::fill_n(to, stride_, int16_t{0});
    float peak = 0.0F;
    bool finite = true;
    for (int64_t i = 0; i < inputs; ++i) {
      const float size = std::fabs(row[i]);
      finite &= size <= std::numeric_limits<float>::max();
      peak = std::max(peak, size);
    }
    const float step = peak / static_cast<float>(kHeadPeak);
    constexpr float kPeak = kHeadPeak;
    for (int64_t i = 0; finite && step > 0.0F && i < inputs; ++i)
      to[i] = static_cast<int16_t>(std::lrintf(std::min(std::max(row[i] / step, -kPeak), kPeak)));
    steps_.push_back(finite ? step : std::numeric_limits<float>::quiet_NaN());
  }
}

void HeadInput::give(HeadCall* call, int first, int rows) const {
  call->rows = rows;
  call->x = whole_.data() + first * stride_;
  call->steps = steps_.data() + first;
}

}  // namespace specdec
