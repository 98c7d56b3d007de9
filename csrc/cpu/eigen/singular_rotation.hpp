// From the span of some vectors to singular triplets: the last step of an SVD by subspaces.
//
// With the rows of V (k x p) an orthonormal basis, and those of Y = V W^T (k x q) its image,
//     Y Y^T = C S^2 C^T,     right = C^T V,     left = S^-1 C^T Y
// are the singular triplets of W restricted to the span. Squaring costs digits at the small end: s_i has a relative
// error of about (s_1 / s_i)^2 roundings, and the rows of `left` are orthogonal to within as much. That takes k^2 q +
// k^2 (p + q) multiplications, all from the second-level cache, chunk by chunk.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/small_matrix.hpp"
#include "cpu/products/host_backend.hpp"
#include "linalg/small_eigen.hpp"

namespace mpfast::cpu {

// Fills `left` (k x q) and `right` (k x p) and returns S, descending. Where S is zero, so is the row of `left`.
template <class Real>
std::vector<double> rotate_to_singular(Team& team, typename HostBackend<Real>::View basis,
                                       typename HostBackend<Real>::View image, typename HostBackend<Real>::View right,
                                       typename HostBackend<Real>::View left) {
  const index_t k = basis.count;
  HostBackend<Real> long_side(team, image.dim, {});
  HostBackend<Real> short_side(team, basis.dim, {});
  SmallMatrix ascending(k, k);
  long_side.gram(image, ascending);
  const std::vector<double> squares = linalg::symmetric_eigen(ascending, [&team] { team.check_interrupt(); });
  SmallMatrix vectors(k, k);
  for (index_t i = 0; i < k; ++i) std::ranges::copy(ascending.column(k - 1 - i), vectors.column(i).begin());
  short_side.combine(basis, vectors, right);
  std::vector<double> singular_values;
  for (index_t i = 0; i < k; ++i) {
    const double s = std::sqrt(std::max(squares[k - 1 - i], 0.0));
    singular_values.push_back(s);
    for (double& entry : vectors.column(i)) entry = s > 0 ? entry / s : 0.0;
  }
  long_side.combine(image, vectors, left);
  return singular_values;
}

}  // namespace mpfast::cpu
