// The draft head: the rows of the logits layer that belong to tokens which are likely to come. Drafts score those alone.
//
// Whatever the view of a draft, its head reads rows of 8-bit codes with a scale each, made of the exact weights: a row is
// added when its token turns up, which no layout of a whole matrix allows. 8,192 of them are a few percent of a model.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "buffer.h"
#include "draft_kernels.h"

namespace specdec {

class Model;

// Rows of the logits layer, in the order in which they were added.
class HeadRows {
 public:
  // Room for `most` rows of `inputs` weights of a vocabulary of `vocab` tokens.
  HeadRows(int64_t vocab, int64_t inputs, int64_t most);

  // Rows of the model's logits layer for `count` tokens, which are in the vocabulary; those that are here stay as they
  // are, and those of `elsewhere` are left out. Where there is no room, the row that was added first goes.
  void add(Model& model, const int32_t* tokens, int64_t count, const HeadRows* elsewhere);
  bool has(int32_t token) const { return known_[static_cast<size_t>(token)]; }
  int64_t count() const { return static_cast<int64_t>(tokens_.size()); }
  int32_t token(int64_t row) const { return tokens_[static_cast<size_t>(row)]; }
  uint64_t bytes() const { return codes_.bytes() + scales_.bytes(); }
  // Bytes that a multiplication reads.
  uint64_t bytes_read() const { return static_cast<uint64_t>(count() * (stride_ + 4)); }
  HeadCall call() const { return {codes_.data(), scales_.data(), stride_, 0, nullptr, nullptr, nullptr, 0}; }

 private:
  void set(Model& model, int64_t row, int32_t token, float* weights);

  const int64_t inputs_, stride_, most_;
  int64_t oldest_ = 0;  // row that goes next
  std::vector<int32_t> tokens_;
  std::vector<bool> known_;
  Buffer<int8_t> codes_;
  Buffer<float> scales_;
};

// The head of one sequence: rows that many share, and its own. Borrows the model, which must live as long.
class DraftHead {
 public:
  DraftHead(Model& model, std::shared_ptr<const HeadRows> common, int64_t most);

  // Tokens to score from now on, in the vocabulary.
  void add(const int32_t* tokens, int64_t count) { own_.add(model_, tokens, count, common_.get()); }
  const Model& model() const { return model_; }
  const HeadRows& common() const { return *common_; }
  const HeadRows& own() const { return own_; }

 private:
  Model& model_;
  std::shared_ptr<const HeadRows> common_;
  HeadRows own_;
};

// Activations of some rows in whole numbers, as HeadCall wants them.
class HeadInput {
 public:
  // Row r at x[r]; a row that holds an infinite number or NaN gets a step of NaN.
  void set(const std::vector<const float*>& x, int64_t inputs);
  void give(HeadCall* call, int first, int rows) const;

 private:
  int64_t stride_ = 0;
  Buffer<int16_t> whole_;
  std::vector<float> steps_;
};

}  // namespace specdec
