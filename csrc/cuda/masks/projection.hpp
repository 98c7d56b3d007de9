// n:m masks that change the layer's output least, over a matrix in device memory: the same masks as
// cpu/masks/projection.hpp, by the same search (masks/projection.hpp).
#pragma once

#include <cstdint>
#include <optional>

#include "core/types.hpp"
#include "cuda/machine/runtime.hpp"
#include "cuda/masks/masks.hpp"

namespace mpfast::cuda {

struct ProjectionProblem {
  ScoredMatrix matrix;                   // its scale is ignored
  const double* moments = nullptr;       // in host memory: cols / m blocks, m x m each
  const std::uint8_t* source = nullptr;  // in device memory: optional mask of the matrix's shape, for the prior
  double prior = 0;
  int n = 2;
  int m = 4;  // 1 <= n <= m <= 16, m divides cols
};

// When the result is set, the mask is of no use.
std::optional<NonFinite> project_groups(Stream stream, const ProjectionProblem& problem);

}  // namespace mpfast::cuda
