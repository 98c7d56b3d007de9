// From block Lanczos coefficients to the spectral measure of A: nodes and weights whose first moment is the exact one.
//
// A block of b probes gives b quadrature rules on shared nodes, bk of them, of which only 2k moments are exact; used
// directly, they make a poor distribution function. What makes a good one:
//   1. converged Ritz values (the leading prefix) are eigenvalues: they leave the rule, with a mass of exactly 1/p
//   each. Where eigenvalues lie closer than Ritz values converge, as at the ends of a tridiagonal Toeplitz matrix, one
//   Ritz value stands for several; the mass of the probes tells, and these stay in the rule;
//   2. the rest is compressed to about 0.6 k Jacobi coefficients, as those of a bidiagonal matrix B with T = B^T B:
//      diagonal alpha_j, off-diagonal beta_j. For a noise bulk they settle within a few steps (E alpha_j^2 = v (q-j+1),
//      E beta_j^2 = v (p-j));
//   3. the matrix is continued with the settled values, and its eigenvalues are the nodes;
//   4. nodes are scaled so that the first moment is what ||W||_F^2 says.
// Where the Krylov space has closed and its eigenvalues do not add up to the trace, they occur more often than a block
// of probes sees them: each then has the mass of its weights, and none counts as an atom. Terminators of this kind go
// back to Haydock's recursion method; for spectra of sample covariance matrices see Abi Younes, Ding and Trogdon, arXiv
// 2504.03066.
#pragma once

#include <span>
#include <vector>

#include "core/small_matrix.hpp"
#include "core/types.hpp"

namespace mpfast::linalg {

// Ritz values and weights of one block run, as in RitzValues.
struct BlockRule {
  std::span<const double> theta;
  std::span<const double> residual;
  ConstSmallView weight;  // a row for each Ritz value, a column for each probe
  index_t steps = 0;
  bool complete = false;  // the Krylov space closed: every non-zero Ritz value is an eigenvalue
};

struct QuadratureOptions {
  double trace = 0;            // of A
  index_t dim = 0;             // p: number of eigenvalues, without those known to be zero
  index_t long_dim = 0;        // q
  bool exact_trace = true;     // false: the trace is itself an estimate, nodes are not scaled
  double converged = 0.02;     // a Ritz value counts as an eigenvalue when residual < converged * theta
  index_t extension = 0;       // settled coefficients appended
  index_t dropped_probe = -1;  // jackknife: leave out this probe, counted through all blocks
};

struct SpectralMeasure {
  index_t atoms = 0;            // leading nodes that are eigenvalues, mass 1/p each
  std::vector<double> nodes;    // eigenvalue scale, descending after the atoms
  std::vector<double> weights;  // sum 1
  double support_edge = 0;      // (a + b)^2 of the settled coefficients: upper edge of what is left
};

// How many leading Ritz values count as eigenvalues in every block.
index_t converged_prefix(std::span<const BlockRule> blocks, double converged);

// How many of these are one eigenvalue each, as far as the probes say: on every eigenvector a probe has 1/dim of its
// mass on average, and leading Ritz values that hold more than chance explains stand for several.
index_t single_prefix(std::span<const BlockRule> blocks, index_t prefix, index_t dim);

SpectralMeasure spectral_measure(std::span<const BlockRule> blocks, const QuadratureOptions& options);

}  // namespace mpfast::linalg
