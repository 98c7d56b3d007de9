// Optimal brain surgeon on the columns of a layer, for all rows at once (Frantar and Alistarh, arXiv 2301.00774, and
// for the rounding 2210.17323): the problem, and the order of the work, for either backend.
//
// With H the damped second moment of the inputs, and U upper triangular with U^T U = H^-1, what column j loses,
// d = w_j - v_j, costs (d / U_jj)^2 when the columns to its right make up for it, those to its left being settled:
//
//   e = d / U_jj,   w_k -= e U_jk for all k > j.
//
// The sum of all e^2 is tr (W - V) H (W - V)^T.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/types.hpp"
#include "reconstruct/column_plan.hpp"

namespace mpfast::reconstruct {

enum class ColumnChoice : std::uint8_t {
  given,     // the mask says what stays
  smallest,  // in every leaf of columns, those of the least (w / U_jj)^2, over all rows together
  groups,    // n of every m in each row, those whose loss costs least given all that is to the right of the group
};

// Of equal scores the one at the lower row-major index of its leaf is pruned. The costs of a group are those of the
// inverse of U_GG^T U_GG; of equal sets the lexicographically smallest goes. The grid of a group spans its weights at
// the moment when its first column is reached. All memory is that of the backend.
struct ColumnsProblem {
  index_t rows = 0;
  index_t cols = 0;
  float* weights = nullptr;       // rows x cols, row-major; in place
  std::uint8_t* keep = nullptr;   // as weights: read (given), or written
  const float* factor = nullptr;  // U, cols x cols, row-major
  ColumnChoice choice = ColumnChoice::given;
  index_t pruned = 0;  // (smallest) how many entries in all
  int n = 0;           // (groups) 1 <= n <= m, m divides cols; how long groups may be is the backend's
  int m = 0;
  int bits = 0;            // 1 to 8: weights that stay are rounded; 0: they are not
  bool symmetric = false;  // (bits) the zero of every grid is in its middle; of 2 bits or more
  index_t group = 0;  // (bits) columns that share a grid in each row; m divides it, but when the group is all columns
  float* scale = nullptr;  // (bits) rows x ceil(cols / group), written
  float* zero = nullptr;
};

// How many entries of the first `columns` columns are pruned: pruned * columns / cols, rounded down, without overflow.
inline index_t pruned_before(const ColumnsProblem& problem, index_t columns) {
  const index_t whole = problem.pruned / problem.cols;
  const index_t rest = problem.pruned % problem.cols;
  return whole * columns + rest * columns / problem.cols;
}

// Columns of the grid that column `column` belongs to.
inline ColumnRange grid_columns(const ColumnsProblem& problem, index_t column) {
  const index_t first = column / problem.group * problem.group;
  return {first, std::min(first + problem.group, problem.cols)};
}

// A backend has set_grid(columns of a grid that is wider than a leaf), settle(leaf), which chooses, drops and rounds
// and makes up for it within the leaf, and make_up(from, to): columns `to` -= E_from U_from,to.
template <class Backend>
void treat_columns(const ColumnsProblem& problem, Backend& backend) {
  const index_t step = problem.choice == ColumnChoice::groups ? problem.m : 1;
  const index_t unit = problem.bits != 0 ? std::max(problem.group, step) : step;
  const auto units = cut_into_units(problem.cols, std::min(unit, problem.cols));
  const auto update = [&](const ColumnRange& from, const ColumnRange& to) { backend.make_up(from, to); };
  halve(
      units, 0, units.size(),
      [&](const ColumnRange& whole) {
        if (problem.bits != 0 && whole.count() > kLeafColumns) backend.set_grid(whole);
        const auto leaves = cut_into_leaves(whole, step);
        halve(leaves, 0, leaves.size(), [&](const ColumnRange& leaf) { backend.settle(leaf); }, update);
      },
      update);
}

}  // namespace mpfast::reconstruct
