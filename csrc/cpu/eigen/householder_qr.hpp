// QR factorisation by panels of Householder reflectors, the columns beside a panel spread over the team.
#pragma once

#include "core/buffer.hpp"
#include "core/types.hpp"
#include "cpu/machine/team.hpp"

namespace mpfast::cpu {

// A = Q R for the m x n matrix A (column-major, finite): R comes to lie in the upper triangle or trapezoid of A, the
// reflectors of Q below its diagonal. Bitwise the same for any size of the team.
class HouseholderQr {
 public:
  HouseholderQr(Team& team, index_t m, index_t n, double* a, index_t lda);

  // C = Q C for `columns` columns of m entries; C may not overlap A.
  void apply(Team& team, index_t columns, double* c, index_t ldc) const;

 private:
  // Columns of a panel, and columns beside it that one task updates.
  static constexpr index_t kPanel = 64;
  static constexpr index_t kTile = 256;

  index_t m_;
  index_t reflectors_;
  const double* a_;
  index_t lda_;
  Buffer<double> t_;  // the triangular factors of the panels
};

}  // namespace mpfast::cpu
