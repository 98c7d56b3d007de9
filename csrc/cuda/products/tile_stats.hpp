// What a block of threads learns of the entries of B, one by one, from a tile in its shared memory (see
// product_pass.hpp): the square of their norm, and which are no numbers.
#pragma once

#include "core/dtype.hpp"
#include "cuda/machine/platform.hpp"
#include "cuda/products/product_kernels.hpp"
#include "cuda/products/product_layout.hpp"

namespace mpfast::cuda {

// Adds up what the entries of a tile say of W: panel rows from row0 on, coordinates from number `first` on, of which
// there is room for `room`.
template <DType storage, class Real>
__device__ void add_stats(const ProductArguments<Real>& a, const TileWord<storage>* tile, index_t first, int room,
                          index_t row0, BlockStats& stats) {
  using Words = Tile<storage>;
  const int words = room * kTileWords;
  for (int i = static_cast<int>(threadIdx.x); i < words; i += static_cast<int>(blockDim.x)) {
    const int j = i / kTileWords;
    const int q = i % kTileWords;
    const TileWord<storage> word = tile[j * kTileStride + q];
    for (int e = 0; e < Words::kPerWord; ++e) {
      const auto bits = Words::entry(word, e);
      const double scaled = Entry<storage>::widen(bits) * a.entry_scale;
      stats.squares += scaled * scaled;
      if ((bits & Entry<storage>::kExponent) != Entry<storage>::kExponent) continue;
      const index_t row = row0 + q * Words::kPerWord + e;
      const index_t col = first + j;
      const index_t position = a.swapped ? col * a.b.rows + row : row * a.b.cols + col;
      if (stats.nonfinite == 0 || position < stats.first) stats.first = position;
      ++stats.nonfinite;
    }
  }
}

// One BlockStats of the threads' own, added up in the order of the threads; `tile` is free by now.
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
