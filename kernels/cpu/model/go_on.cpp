// Passes over single rows, each with the token that the one before it has chosen.
#include <algorithm>
#include <stdexcept>

#include "model.h"

namespace specdec {

std::vector<RowChoice> Model::go_on(SequenceRows& row, DraftView* draft, Choice choice, const GoingOn& going) {
  if (row.rows != 1 || row.parents != nullptr || row.states != nullptr || row.likely != 0)
    throw std::invalid_argument("a pass goes on from a single row, and shows its choices alone");
  const int64_t held = row.cache->length();
  std::vector<RowChoice> choices;
  std::vector<SequenceRows> batch = {row};
  RowChoice chosen{};
  try {
    for (;;) {
      batch[0].choices = &chosen;
      batch[0].shown = Shown::all;
      forward(batch, draft, nullptr, choice);
      row.bytes += batch[0].bytes;
      choices.push_back(chosen);
      const bool ended = std::find(going.ends.begin(), going.ends.end(), chosen.token) != going.ends.end();
      if (static_cast<int>(choices.size()) > going.most || ended || !(chosen.margin >= going.least_margin)) break;
      if (row.cache->length() == row.cache->capacity) break;
      batch[0].tokens = &chosen.token;
    }
  } catch (...) {
    row.cache->trim(held);
    throw;
  }
  return choices;
}

}  // namespace specdec
