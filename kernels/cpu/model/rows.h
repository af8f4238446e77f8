// One sequence's share of a pass, as Model::forward takes it (specdec.runtimes.base.Rows).
#pragma once

#include <cstdint>

#include "cache.h"

namespace specdec {

// Rows and sequences that one pass takes at most; a longer input goes through in pieces, with equal results.
constexpr int kMaxRows = 512;
constexpr int kMaxSequences = 64;
constexpr int kMaxTreeRows = 64;

class DraftHead;

enum class Shown { none, last, all };  // rows whose logits are computed

// What greedy decoding needs of a row's logits (specdec.runtimes.choices.Choice).
struct RowChoice {
  int32_t token;   // of the largest logit, the first of equal ones; NaN counts as largest
  float highest;   // the largest logit; where it is not finite, what follows is NaN
  float margin;    // and by how much it is larger than the second
  double entropy, top_probability;  // at temperature 1
};

struct SequenceRows {
  KvCache* cache;
  const int32_t* tokens;
  int rows;                          // 1 or more, appended to the cache
  const double* efforts;             // one per matrix
  const int32_t* parents = nullptr;  // of a tree: an earlier row each, or -1; null for a chain
  int layers = 0;                    // the first so many; 0: all
  Shown shown = Shown::all;
  DraftHead* head = nullptr;         // tokens whose logits are computed, the others' are -inf; null: all
  int64_t recent = 0, sinks = 0;     // unless 0: a row sees the first `sinks` positions, at most kChunk, and from `recent`
                                     // positions back on, rounded down to a multiple of kChunk
  RowChoice* choices = nullptr;      // out, unless null: the choice of each shown row, in place of its logits
  int likely = 0;                    // the tokens of so many largest logits of each shown row go to ...
  int32_t* likeliest = nullptr;      // ... (shown rows, likely), in no order; -1 for those that there are not
  float* states = nullptr;           // unless null: hidden states after every layer, (layers, rows, hidden)
  uint64_t bytes = 0;                // out: what the pass read for these rows

  int shown_rows() const { return shown == Shown::all ? rows : shown == Shown::last ? 1 : 0; }
};

}  // namespace specdec
