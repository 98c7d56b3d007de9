// Sums over a row by the threads of a block, always in the same order. Internal linkage, as in masks/group_search.hpp.
#pragma once

#include "core/types.hpp"
#include "cuda/machine/platform.hpp"

namespace mpfast::cuda {

constexpr unsigned kRowThreads = 256;

namespace {

// The sum of all threads' values. Every thread calls it and gets the answer; `memory` holds kRowThreads numbers.
__device__ double sum_of_block(double value, double* memory) {
  __syncthreads();  // the sum before has been read
  memory[threadIdx.x] = value;
  for (unsigned step = kRowThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) memory[threadIdx.x] += memory[threadIdx.x + step];
  }
  __syncthreads();
  return memory[0];
}

// function(j) for this thread's share of a row; neighbours take neighbours.
template <class Function>
__device__ void for_each_column(index_t cols, const Function& function) {
  for (index_t j = threadIdx.x; j < cols; j += kRowThreads) function(j);
}

}  // namespace

}  // namespace mpfast::cuda
