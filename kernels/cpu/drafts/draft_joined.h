// Matrices that share an activation row (q|k|v; gate|up), which draft views keep side by side.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace specdec {

struct MatrixShape {
  int64_t out = 0, in = 0;
};

class JoinedMatrices {
 public:
  // lists: matrix numbers that are always multiplied by the same row; together they name every matrix once.
  // Throws std::invalid_argument where that does not hold.
  JoinedMatrices(std::vector<MatrixShape> shapes, std::vector<std::vector<int>> lists);

  size_t count() const { return lists_.size(); }
  const std::vector<int>& list(size_t j) const { return lists_.at(j); }
  int64_t inputs(size_t j) const { return shape(lists_.at(j)[0]).in; }
  const MatrixShape& shape(int matrix) const { return shapes_.at(static_cast<size_t>(matrix)); }
  // Number of the list that names a matrix.
  size_t list_of(int matrix) const { return list_of_.at(static_cast<size_t>(matrix)); }

 private:
  std::vector<MatrixShape> shapes_;
  std::vector<std::vector<int>> lists_;
  std::vector<size_t> list_of_;
};

}  // namespace specdec
