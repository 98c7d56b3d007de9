// Eigenvalues of a dense symmetric matrix, values only.
#pragma once

#include "core/types.hpp"
#include "cpu/machine/team.hpp"

namespace mpfast::cpu {

// Eigenvalues of the n x n symmetric A, ascending. A is column-major, only its lower triangle is read, and it is
// destroyed (the strict upper triangle too). Its entries must be finite. Error of each value: a modest multiple of
// machine epsilon times the largest in magnitude. Bitwise the same for any size of the team.
void symmetric_eigenvalues(Team& team, index_t n, double* a, index_t lda, double* values);

}  // namespace mpfast::cpu
