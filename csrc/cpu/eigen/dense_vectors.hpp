// Dense decompositions with their vectors. What a single call of LAPACK does runs on one thread and can be abandoned;
// what is done to each vector by itself is spread over the team. Bitwise the same for any size of the team.
#pragma once

#include <vector>

#include "core/types.hpp"
#include "cpu/machine/team.hpp"

namespace mpfast::cpu {

// Eigenvalues of the n x n symmetric A (finite; column-major without gaps, its lower triangle read), ascending, and its
// eigenvectors, one per column of z. Error of each value: a modest multiple of machine epsilon times the largest.
std::vector<double> symmetric_eigenvectors(Team& team, index_t n, const double* a, double* z);

// The largest `count` (up to n) of these eigenvalues, ascending, and their eigenvectors, one per column of z (n x
// count): the reduction to a tridiagonal matrix, which is a third of the work, and next to nothing else.
std::vector<double> largest_eigenvectors(Team& team, index_t n, index_t count, const double* a, double* z);

// What each of these allocates.
index_t eigenvector_bytes(index_t n);

// Vectors as rows without gaps between them, as they come from NumPy.
struct Rows {
  double* data;
  index_t count;
  index_t length;
};

// As rotate_to_singular of singular_rotation.hpp, by an orthogonal decomposition of the image (finite, no more rows
// than columns) in place of its squares: small singular values, too, err by no more than a modest multiple of machine
// epsilon times the largest, and all vectors are orthonormal, those of zero included. The image is destroyed.
std::vector<double> decompose_to_singular(Team& team, Rows basis, Rows image, Rows right, Rows left);

// What decompose_to_singular allocates.
index_t decomposition_bytes(index_t count);

// x^T = q^T r: the rows of q (min(count, length) of them) are an orthonormal basis of what the rows of x span, r has
// x.count columns and lies in memory row by row. x is destroyed.
void orthonormal_rows(Team& team, Rows x, Rows q, Rows r);

}  // namespace mpfast::cpu
