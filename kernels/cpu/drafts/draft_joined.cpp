#include "draft_joined.h"

#include <algorithm>
#include <stdexcept>

namespace specdec {

JoinedMatrices::JoinedMatrices(std::vector<MatrixShape> shapes, std::vector<std::vector<int>> lists)
    : shapes_(std::move(shapes)), lists_(std::move(lists)), list_of_(shapes_.size()) {
  std::vector<bool> named(shapes_.size());
  for (size_t j = 0; j < lists_.size(); ++j) {
    if (lists_[j].empty()) throw std::invalid_argument("a joined list must name a matrix");
    for (const int m : lists_[j]) {
      const auto matrix = static_cast<size_t>(m);
      if (m < 0 || matrix >= shapes_.size() || named[matrix])
        throw std::invalid_argument("the joined lists must name every matrix once");
      const MatrixShape& first = shapes_[static_cast<size_t>(lists_[j][0])];
      if (shapes_[matrix].in < 1 || shapes_[matrix].out < 1 || shapes_[matrix].in != first.in)
        throw std::invalid_argument("joined matrices must have outputs, and equally many inputs");
      named[matrix] = true;
      list_of_[matrix] = j;
    }
  }
  if (!std::all_of(named.begin(), named.end(), [](bool yes) { return yes; }))
    throw std::invalid_argument("the joined lists must name every matrix once");
}

}  // namespace specdec
