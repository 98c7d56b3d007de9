// Eigenvalues of a symmetric tridiagonal matrix.
#pragma once

#include "core/types.hpp"
#include "cpu/machine/team.hpp"

namespace mpfast::cpu {

// Of the diagonal d (n entries) and what lies beside it, e (n - 1 entries), ascending: to a few roundings of the
// largest, and the same bits for any size of the team. Finite entries whose squares neither overflow nor underflow.
void tridiagonal_values(Team& team, index_t n, const double* d, const double* e, double* values);

}  // namespace mpfast::cpu
