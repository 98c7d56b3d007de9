// Adding up what the threads of a block learn about entries.
#pragma once

#include "cuda/machine/platform.hpp"
#include "cuda/products/product_kernels.hpp"

namespace mpfast::cuda {

// Counts an entry that is not finite, at a row-major position in W.
__device__ inline void add_nonfinite(BlockStats& stats, index_t position) {
  if (stats.nonfinite == 0 || position < stats.first) stats.first = position;
  ++stats.nonfinite;
}

// One BlockStats of the threads' own, added up in the order of the threads; nobody needs `scratch` any more.
__device__ inline void write_stats(const BlockStats& own, BlockStats* scratch, BlockStats* out) {
  __syncthreads();
  scratch[threadIdx.x] = own;
  __syncthreads();
  if (threadIdx.x == 0) {
    BlockStats total = scratch[0];
    for (unsigned t = 1; t < blockDim.x; ++t) {
      const BlockStats& next = scratch[t];
      total.squares += next.squares;
      if (next.nonfinite == 0) continue;
      if (total.nonfinite == 0 || next.first < total.first) total.first = next.first;
      total.nonfinite += next.nonfinite;
    }
    *out = total;
  }
}

}  // namespace mpfast::cuda
