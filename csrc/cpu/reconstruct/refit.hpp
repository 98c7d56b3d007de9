// Least squares on a mask: the weights V, zero where the mask drops, with the least tr (W - V) H (W - V)^T.
//
// Preconditioned conjugate gradients in coordinates where H has a unit diagonal, all rows side by side, each with the
// steps of its own. One step is one product with H. The preconditioner of a row is its block of
//
//   base I + B B^T,   B B^T the leading part of H (factor.hpp),
//
// exactly inverted by way of a small matrix: B_K is B on the inputs K that the row keeps, and
//
//   (base I + B_K B_K^T)^-1 r = (r - B_K (base I + B_K^T B_K)^-1 B_K^T r) / base.
//
// The second moments of layers have few large eigenvalues and many small ones; with the large ones gone, four steps get
// as far as ten that are preconditioned by the diagonal alone.
//
// No step can take away more of the error than there is. One that claims to goes along a direction of which H, in
// single precision, has nothing but rounding: there the row ends.
#pragma once

#include <cstdint>
#include <utility>

#include "core/types.hpp"
#include "cpu/machine/team.hpp"

namespace mpfast::cpu {

struct RefitProblem {
  index_t rows = 0;
  index_t cols = 0;
  const float* target = nullptr;       // W, rows x cols, row-major
  float* weights = nullptr;            // V: the start, and the result; zero where the mask drops
  const std::uint8_t* keep = nullptr;  // as W
  const float* symmetric = nullptr;    // H with a unit diagonal, cols x cols
  const float* roots = nullptr;        // square roots of the diagonal of H
  const float* basis = nullptr;        // B, cols x width, row-major
  index_t width = 0;
  float base = 1;
  int steps = 0;
};

// rows cols (2 cols + 4 width) flops a step, one product with H more for the first residual, and rows cols width^2 for
// the preconditioner. The result is the same for any size of the team, of which each thread has 512 rows under way.
void refit(Team& team, const RefitProblem& problem);

// product (rows x cols) = a (rows x depth) b (depth x cols), all row-major.
void multiply(Team& team, index_t rows, index_t cols, index_t depth, const float* a, const float* b, float* product);

// Sum over the rows d of W - V of d^T C d / unit^2, in double precision; C: cols x cols, row-major. `weights` may have
// no data: then it is zero. `unit` is a product of two numbers, near the largest weight and the root of the largest
// entry of C: so nothing overflows on the way, and no sum vanishes that is not zero.
double quadratic_error(Team& team, const MatrixView& target, const MatrixView& weights, const double* moment,
                       std::pair<double, double> unit);

}  // namespace mpfast::cpu
