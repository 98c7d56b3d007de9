// Least squares on a mask, in device memory: the preconditioned conjugate gradients of cpu/reconstruct/refit.hpp, where
// the method stands.
#pragma once

#include <cstdint>

#include "core/abandonable.hpp"
#include "core/types.hpp"
#include "cuda/machine/runtime.hpp"

namespace mpfast::cuda {

constexpr index_t kMostDirections = 96;

// Everything in device memory, but for the numbers.
struct RefitProblem {
  index_t rows = 0;
  index_t cols = 0;
  const float* target = nullptr;       // W, rows x cols, row-major
  float* weights = nullptr;            // V: the start, and the result; zero where the mask drops
  const std::uint8_t* keep = nullptr;  // as W
  const float* symmetric = nullptr;    // H with a unit diagonal, cols x cols
  const float* roots = nullptr;        // square roots of the diagonal of H
  const float* basis = nullptr;        // B, cols x width, row-major
  index_t width = 0;                   // kMostDirections at most
  float base = 1;
  int steps = 0;
};

// As on the CPU, but that rows which have arrived go on taking steps of length zero. The bits of the result depend on
// the problem alone. 4096 rows at most are under way at a time. `poll`, where there is one, is called before each step.
void refit(Stream stream, const RefitProblem& problem, const Poll& poll);

struct ScaleProblem {
  index_t rows = 0;
  index_t cols = 0;
  const float* target = nullptr;
  float* weights = nullptr;
  const float* symmetric = nullptr;
  const float* roots = nullptr;
  const float* shares = nullptr;  // what damping has of each diagonal entry of H, 0 to 1
  float least = 1;                // limits of the scales
  float largest = 1;
  float rounding = 0;  // a square below this share of that of uncorrelated inputs is not known
};

// Multiplies each row v with (w C v) / (v C v) within the limits, C being H without its damping, where a share is below
// one: the scale with which it comes nearest to w. One product with H.
void scale_rows(Stream stream, const ScaleProblem& problem);

}  // namespace mpfast::cuda
