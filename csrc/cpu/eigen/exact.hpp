// All singular values of W, by the fp64 Gram matrix of its short side.
#pragma once

#include "core/factors.hpp"
#include "core/types.hpp"
#include "cpu/decoding/source.hpp"
#include "cpu/machine/team.hpp"

namespace mpfast::cpu {

enum class ExactMethod { gram, bidiagonal };

// What one pass over W learns besides its Gram matrix.
struct ExactStats {
  double frobenius_norm = 0;  // of 2^-scale_exponent W in gram_matrix, of W itself in singular_values
  index_t nonfinite_count = 0;
  index_t first_nonfinite_row = -1;  // first in row-major order of W; -1 when all entries are finite
  index_t first_nonfinite_col = -1;
  ExactMethod method = ExactMethod::gram;
};

// In both functions W stands for what its factors, where given, make of it: they enter where W is widened.
//
// Lower triangle of G = S^T S (p x p, column-major), where S is 2^-scale_exponent W or its transpose, whichever has its
// short side p = min(rows, cols) as columns. W is widened to double panel by panel (2 MB at a time up to
// p = 1024). Panels that follow a non-finite entry are only counted, and G is then meaningless.
// Bitwise the same for any size of the team.
ExactStats gram_matrix(Team& team, const Source& w, const Factors& factors, int scale_exponent, double* g, index_t ldg);

// Memory that singular_values needs for its matrix in the first case below.
index_t exact_work_bytes(const Source& w);

// All p = min(rows, cols) singular values of W, descending. When W has non-finite entries nothing but stats is filled.
//
// The values are 2^e sqrt(lambda(G)) unless that loses the bulk: a relative error of about u (s_1 / s)^2 (u = 2^-53) at
// the lower quartile of the values that zero rows and columns leave free to be non-zero. Then (ExactMethod::bidiagonal)
// they come from an orthogonal bidiagonalisation of a double copy of W, several times slower. Values below about
// 1e-8 s_1 are noise in the first case, values below 1e-16 s_1 in the second.
// `gram`, where given, gets G on the way (p x p without gaps, lower triangle), of 2^-scale_exponent W.
void singular_values(Team& team, const Source& w, const Factors& factors, double* values, ExactStats* stats,
                     double* gram = nullptr, int scale_exponent = 0);

}  // namespace mpfast::cpu
