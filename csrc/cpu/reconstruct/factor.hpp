// What refitting needs of the second moment C of a layer's inputs.
#pragma once

#include <cstdint>

#include "core/types.hpp"
#include "cpu/machine/team.hpp"

namespace mpfast::cpu {

struct MomentFacts {
  index_t nonfinite_count = 0;
  index_t first_nonfinite_row = -1;
  index_t first_nonfinite_col = -1;
  // By how much it is no second moment: the largest |C_ij - C_ji|, or |C_ij| - sqrt(C_ii C_jj) where that is more.
  double asymmetry = 0;
};

// Reads C (n x n, any strides) twice and writes its diagonal.
MomentFacts examine_moment(Team& team, const MatrixView& moment, double* diagonal);

// U, upper triangular, row-major, zeros below, with U^T U = H^-1, for H = C / unit off the diagonal, the mean of both
// triangles, and `diagonal` on it. In double precision, n^3 / 3 + n^3 / 3 flops: one Cholesky factor of H with rows and
// columns in reverse order, H = R R^T with an upper triangular R, and U = R^-1.
//
// Returns the index of an input at which H is not positive definite, or -1; U is then of no use.
index_t inverse_factor(Team& team, const MatrixView& moment, double unit, const double* diagonal, float* factor);

// H^-1, both triangles, row-major, of the positive definite H (n x n, row-major without gaps, its lower triangle read):
// X^T X with X = L^-1 of H = L L^T, n^3 flops in all. Returns -1, or the index at which H is not positive definite;
// the inverse is then of no use.
index_t positive_inverse(Team& team, index_t n, const double* h, double* inverse);

// By group g of `count`, what removing it costs: tr B_g^-1 G_g of the symmetric size x size matrices B_g, positive
// definite, and G_g, all row-major and one behind the other. NaN where B_g is not positive definite.
void removal_costs(Team& team, index_t count, index_t size, const double* b, const double* g, double* costs);

// The off-diagonal entries of C times roots_i roots_j, and 1 on the diagonal; row-major.
void correlations(Team& team, const MatrixView& moment, const double* roots, float* result);

// B, n x width, row-major, with B B^T close to H, symmetric with unit diagonal, in its leading directions: Nystroem's
// approximation from the image of `probes` (n x width of -1 and 1). Returns how many of the columns are set, from the
// left; the others are zero.
index_t leading_part(Team& team, index_t n, const float* symmetric, index_t width, const std::int8_t* probes,
                     float* basis);

}  // namespace mpfast::cpu
