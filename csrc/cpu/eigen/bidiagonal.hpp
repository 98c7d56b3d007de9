// Singular values by orthogonal bidiagonalisation: the accurate, slow and memory-hungry route.
#pragma once

#include <memory>
#include <vector>

#include "core/buffer.hpp"
#include "core/types.hpp"
#include "cpu/machine/team.hpp"

namespace mpfast::cpu {

// A matrix A on its way to Q B P^T, B upper bidiagonal with diagonal d and superdiagonal e; Q and P then lie in a, tauq
// and taup as LAPACK's gebrd has them. It lives as long as the last LAPACK call that uses it, even when an interrupt
// has abandoned that call.
struct Bidiagonalization {
  // A is m x n, m >= n >= 1, column-major and finite.
  Bidiagonalization(index_t m, index_t n, Buffer<double> matrix, index_t ld);

  Buffer<double> a;
  index_t lda;
  std::vector<double> d, e, tauq, taup;
  index_t ldx, ldy;
  Buffer<double> x, y;
};

void bidiagonalize(Team& team, index_t m, index_t n, const std::shared_ptr<Bidiagonalization>& state);

// All singular values of the m x n matrix A (m >= n >= 1, column-major, finite), descending. Error of each: a modest
// multiple of machine epsilon times the largest, however small the value is. A is taken over and destroyed.
void bidiagonal_values(Team& team, index_t m, index_t n, Buffer<double> a, index_t lda, double* values);

}  // namespace mpfast::cpu
