// Eigenvalues of a dense symmetric matrix, values only.
#pragma once

#include <functional>

#include "core/types.hpp"
#include "cpu/team.hpp"

namespace mpfast::cpu {

// Eigenvalues of the n x n symmetric A, ascending. A is column-major, only its lower triangle is read, and it is
// destroyed (the strict upper triangle too). Its entries must be finite. Error of each value: a modest multiple of
// machine epsilon times the largest in magnitude. Bitwise the same for any size of the team.
void symmetric_eigenvalues(Team& team, index_t n, double* a, index_t lda, double* values);

// Runs `work` on a thread of its own while the owner of `team` keeps polling for an interrupt, for single calls into
// LAPACK that take too long. An interrupt leaves the call running on its own: `work` must own all it touches.
void run_abandonable(Team& team, std::function<void()> work);

}  // namespace mpfast::cpu
