// Launch of the projection kernels; projection.cpp is what is around them.
#pragma once

#include <cstdint>

#include "core/types.hpp"
#include "cuda/machine/runtime.hpp"
#include "cuda/masks/masks.hpp"

namespace mpfast::cuda {

// Everything in device memory.
struct ProjectionTask {
  MatrixView entries;
  std::uint8_t* keep = nullptr;
  const double* moments = nullptr;  // normalised: the largest entry of each diagonal near 1
  const std::uint8_t* source = nullptr;
  double prior = 0;
  int n = 2;
  int m = 4;
};

// Writes the mask; sets *nonfinite when an entry is not finite.
void write_projection(Stream stream, const ProjectionTask& task, std::uint32_t* nonfinite);

}  // namespace mpfast::cuda
