// Singular values by orthogonal bidiagonalisation: the accurate, slow and memory-hungry route.
#pragma once

#include "core/buffer.hpp"
#include "core/types.hpp"
#include "cpu/machine/team.hpp"

namespace mpfast::cpu {

// All singular values of the m x n matrix A (m >= n >= 1, column-major, finite), descending. Error of each: a modest
// multiple of machine epsilon times the largest, however small the value is. A is taken over and destroyed.
void bidiagonal_values(Team& team, index_t m, index_t n, Buffer<double> a, index_t lda, double* values);

}  // namespace mpfast::cpu
