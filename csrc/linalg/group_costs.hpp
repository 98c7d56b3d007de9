// What it costs to lose several columns of a group together when the columns to its right make up for it.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/small_matrix.hpp"
#include "linalg/triangular.hpp"
#include "masks/projection.hpp"

namespace mpfast::linalg {

// m x m for each group G of m columns, row by row, with the largest entry near 1: (U_GG^T U_GG)^-1, whose entry (i, j)
// is the cost of losing slots i and j together. `blocks`: the U_GG one after the other, each row by row; what lies
// below their diagonals is not read.
inline std::vector<double> group_costs(const std::vector<float>& blocks, int m) {
  std::vector<double> costs(blocks.size());
  const auto size = static_cast<std::size_t>(m) * static_cast<std::size_t>(m);
  for (std::size_t first = 0; first < blocks.size(); first += size) {
    SmallMatrix block(m, m);
    for (int i = 0; i < m; ++i) {
      for (int j = i; j < m; ++j) block(i, j) = blocks[first + static_cast<std::size_t>(i * m + j)];
    }
    const SmallMatrix inverse = upper_inverse(block);
    double* const cost = costs.data() + first;
    double largest = 0;
    for (int i = 0; i < m; ++i) {
      for (int j = 0; j < m; ++j) {
        double sum = 0;
        for (int k = std::max(i, j); k < m; ++k) sum += inverse(i, k) * inverse(j, k);
        cost[i * m + j] = sum;
        largest = std::max(largest, std::abs(sum));
      }
    }
    const double factor = masks::unit_factor(largest);
    for (int i = 0; i < m * m; ++i) cost[i] *= factor;
  }
  return costs;
}

}  // namespace mpfast::linalg
