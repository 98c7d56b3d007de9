// Optimal brain surgeon on the columns of a layer, for all rows at once (Frantar and Alistarh, arXiv 2301.00774, and
// for the rounding 2210.17323).
//
// With H the damped second moment of the inputs, and U upper triangular with U^T U = H^-1, what column j loses,
// d = w_j - v_j, costs (d / U_jj)^2 when the columns to its right make up for it, those to its left being settled:
//
//   e = d / U_jj,   w_k -= e U_jk for all k > j.
//
// The sum of all e^2 is tr (W - V) H (W - V)^T.
#pragma once

#include <cstdint>

#include "core/types.hpp"
#include "cpu/machine/team.hpp"

namespace mpfast::cpu {

enum class ColumnChoice : std::uint8_t {
  given,     // the mask says what stays
  smallest,  // in every leaf of columns, those of the least (w / U_jj)^2, over all rows together
  groups,    // n of every m in each row, those whose loss costs least given all that is to the right of the group
};

struct ColumnsProblem {
  index_t rows = 0;
  index_t cols = 0;
  float* weights = nullptr;       // rows x cols, row-major; in place
  std::uint8_t* keep = nullptr;   // as weights: read (given), or written
  const float* factor = nullptr;  // U, cols x cols, row-major
  ColumnChoice choice = ColumnChoice::given;
  index_t pruned = 0;  // (smallest) how many entries in all
  int n = 0;           // (groups) 1 <= n <= m <= 64, m divides cols
  int m = 0;
  int bits = 0;       // 1 to 8: weights that stay are rounded; 0: they are not
  index_t group = 0;  // (bits) columns that share a grid in each row; m divides it, but when the group is all columns
  float* scale = nullptr;  // (bits) rows x ceil(cols / group), written
  float* zero = nullptr;
};

// Of equal scores the one at the lower row-major index of its leaf is pruned. The exact search for groups of m <= 16,
// the exchange search for longer ones: see masks/projection.hpp; the costs of a group are those of the inverse of
// U_GG^T U_GG. The grid of a group spans its weights at the moment when its first column is reached. The result is the
// same for any size of the team.
//
// rows cols^2 flops in products, and 128 rows cols in the tiles. Besides its arguments it needs as much memory as the
// weights.
void obs_columns(Team& team, const ColumnsProblem& problem);

}  // namespace mpfast::cpu
