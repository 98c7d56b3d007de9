// Launches of the kernels of a refit; refit.cpp is the algorithm around them. A block of threads for each row.
#pragma once

#include <cstdint>

#include "core/types.hpp"
#include "cuda/machine/runtime.hpp"
#include "cuda/reconstruct/refit.hpp"

namespace mpfast::cuda {

// Some rows of a problem on their way: arrays of rows x cols, and for each row what it needs besides.
struct RefitChunk {
  RefitProblem problem;  // of these rows
  float* residual = nullptr;
  float* direction = nullptr;
  float* image = nullptr;
  float* coefficients = nullptr;  // rows x width: B^T residual, then the solution
  float* small = nullptr;         // rows x width x width: Cholesky factors, column by column
  double* energy = nullptr;
};

// direction = (W - V) roots.
void set_difference(Stream stream, const RefitChunk& chunk);
// small = the Cholesky factor of base I + B_K^T B_K. Reads B once for each row; cols width^2 flops for each.
void factor_preconditioners(Stream stream, const RefitChunk& chunk);
// residual, zero where the mask drops.
void mask_residual(Stream stream, const RefitChunk& chunk);
// coefficients = (L L^T)^-1 coefficients, for L in `small`. Reads that twice; it bounds the time.
void solve_preconditioners(Stream stream, const RefitChunk& chunk);
// image, which holds B coefficients, becomes the preconditioned residual, and the direction follows it; `first`: it is
// that.
void turn(Stream stream, const RefitChunk& chunk, bool first);
// The step along the direction, whose product with H is in `image`.
void advance(Stream stream, const RefitChunk& chunk);

// transposed (cols x rows) = matrix^T (rows x cols).
void transpose(Stream stream, index_t rows, index_t cols, const float* matrix, float* transposed);
// scaled = weights * roots, by columns.
void scale_columns(Stream stream, index_t rows, index_t cols, const float* weights, const float* roots, float* scaled);
// The rows' scales, given H's product with the scaled weights.
void apply_scales(Stream stream, const ScaleProblem& problem, const float* scaled, const float* image);

}  // namespace mpfast::cuda
