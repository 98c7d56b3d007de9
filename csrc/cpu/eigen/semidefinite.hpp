// The root of a positive semidefinite matrix.
#pragma once

#include <vector>

#include "core/buffer.hpp"
#include "core/types.hpp"
#include "cpu/machine/team.hpp"

namespace mpfast::cpu {

// A = F F^T but for `rest`, by Cholesky's factorisation with complete pivoting. Row order[i] of F is
// (l_i0, l_i1, ... l_ii, 0 ...), with l_ij = lower[i + j * ld] for j < rank.
struct SemidefiniteRoot {
  Buffer<double> lower;
  index_t ld = 0;
  index_t rank = 0;
  std::vector<index_t> order;
  double rest = 0;  // the largest |(A - F F^T)_ij|: rounding, unless A has a negative eigenvalue
};

// Of an n x n matrix A (finite; row-major without gaps, its lower triangle read) whose diagonal entries are near 1, or
// zero. It ends where what is left of the diagonal is no more than rounding: that of the sums, or that of the entries,
// which shows where a remaining diagonal entry is negative. n rank^2 - 2 rank^3 / 3 flops. Bitwise the same for any
// size of the team.
SemidefiniteRoot semidefinite_root(Team& team, index_t n, const double* a);

}  // namespace mpfast::cpu
